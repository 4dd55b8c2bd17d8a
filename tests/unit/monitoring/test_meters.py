"""Meters of one process, and their exposition."""

from __future__ import annotations

import re

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from chatgrpo import monitoring
from chatgrpo.errors import InvalidRequest
from chatgrpo.monitoring import catalog, meters
from chatgrpo.monitoring.exposition import expose
from chatgrpo.monitoring.merging import rows_of
from chatgrpo.monitoring.meters import MAX_LABEL_SETS, Meters, custom

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def test_own_counters_are_shown_and_shared_by_name() -> None:
    monitoring.counter("orders_resolved", "Orders resolved.", labels=["channel"]).inc(channel="web")
    monitoring.counter("orders_resolved", "Orders resolved.", labels=["channel"]).inc(2, channel="web")
    monitoring.gauge("open_orders").set(7)
    shown = meters.PROCESS.registry
    assert shown.get_sample_value("chatgrpo_custom_orders_resolved_total", {"channel": "web"}) == 3
    assert shown.get_sample_value("chatgrpo_custom_open_orders") == 7


@pytest.mark.parametrize(("name", "labels"), [("Orders", []), ("orders-x", []), ("1st", []), ("orders", ["a b"])])
def test_wrong_names_are_refused(name: str, labels: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="lower-case"):
        monitoring.counter(name, labels=labels)


def test_one_name_has_one_declaration() -> None:
    made = Meters()
    made.of(custom(catalog.Kind.COUNTER, "a", "", []))
    with pytest.raises(InvalidRequest, match="declared already"):
        made.of(custom(catalog.Kind.COUNTER, "a", "", ["b"]))


def test_labels_must_be_those_declared() -> None:
    with pytest.raises(InvalidRequest, match="got \\('user',\\)"):
        Meters().of(catalog.HTTP_SECONDS).observe(1.0, user="u")


def test_label_sets_are_bounded_and_the_rest_is_counted() -> None:
    made = Meters()
    meter = made.of(custom(catalog.Kind.COUNTER, "visits", "", ["visitor"]))
    for i in range(MAX_LABEL_SETS + 30):
        meter.inc(visitor=str(i))
    meter.inc(visitor="0")
    name = "chatgrpo_custom_visits_total"
    assert made.registry.get_sample_value(name, {"visitor": "0"}) == 2
    assert made.registry.get_sample_value(name, {"visitor": "other"}) == 30
    dropped = made.registry.get_sample_value("chatgrpo_label_sets_dropped_total", {"metric": "chatgrpo_custom_visits"})
    assert dropped == 30


def test_openmetrics_carries_the_trace_of_a_slow_request() -> None:
    made = Meters()
    made.of(catalog.HTTP_SECONDS).observe(3.0, route="/", trace_id="ab" * 16)
    text, content_type = expose(rows_of(made.registry), [made.registry], OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    families = {f.name: f for f in text_string_to_metric_families(text.decode())}
    seconds = families["chatgrpo_http_request_seconds"]
    assert (seconds.type, seconds.unit) == ("histogram", "seconds")
    exemplars = {s.labels["le"]: s.exemplar.labels for s in seconds.samples if s.exemplar}
    assert exemplars == {"5.0": {"trace_id": "ab" * 16}}


def test_who_does_not_ask_gets_the_plain_format() -> None:
    text, content_type = expose([], [Meters().registry], "")
    assert content_type.startswith("text/plain")
    assert not re.search(rb"# EOF", text)
