"""Declarations: complete, well named, and what the platform shows is declared."""

from __future__ import annotations

import re

import pytest

from chatgrpo.monitoring.catalog import CATALOG, TRAINING, Kind, Merge, Metric


@pytest.mark.parametrize("metric", CATALOG.values(), ids=CATALOG)
def test_a_name_ends_with_its_unit_and_never_with_total(metric: Metric) -> None:
    assert re.fullmatch(r"chatgrpo_[a-z][a-z0-9_]*", metric.name)
    assert not metric.name.endswith("_total")
    assert metric.name.endswith(metric.unit)
    assert metric.help.endswith(".")
    assert metric.sample_name.endswith("_total") == (metric.kind is Kind.COUNTER)


@pytest.mark.parametrize("metric", CATALOG.values(), ids=CATALOG)
def test_counts_add_up_over_processes(metric: Metric) -> None:
    if metric.kind is not Kind.GAUGE:
        # A machine's counts are told by every process of it.
        assert metric.merge is (Merge.MAX if "network" in metric.name else Merge.SUM)


def test_labels_name_no_person_and_no_path() -> None:
    labels = {label for metric in CATALOG.values() for label in metric.labels}
    bounded = {"method", "route", "status", "metric", "component", "state", "gpu", "tier", "result", "limit", "kind"}
    assert labels == bounded | {"job_id", "model", "upstream", "topic"}


def test_no_two_figures_share_a_metric() -> None:
    assert len({metric.name for metric in TRAINING.values()}) == len(TRAINING)
