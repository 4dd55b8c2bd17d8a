"""The rules that a Prometheus server gets."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from chatgrpo.errors import InvalidRequest
from chatgrpo.monitoring.alert_config import AlertsConfig, load_alerts
from chatgrpo.monitoring.catalog import CATALOG
from chatgrpo.monitoring.prometheus_rules import expression, groups

ROOT = Path(__file__).parents[3]


def test_the_file_under_configs_is_what_the_code_makes() -> None:
    made = yaml.safe_load((ROOT / "configs/prometheus/rules.yaml").read_text())
    assert made == groups(load_alerts()), (
        "python -m chatgrpo.monitoring.prometheus_rules > configs/prometheus/rules.yaml"
    )
    assert (ROOT / "configs/alerts.yaml").read_text().count("- name:") == len(load_alerts().rules)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_promtool_accepts_rules_and_configuration() -> None:
    for verb, name in (("rules", "rules.yaml"), ("config", "prometheus.yaml")):
        path = str(ROOT / "configs/prometheus" / name)
        checked = subprocess.run(["promtool", "check", verb, path], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr


def test_shipped_rules_speak_of_declared_metrics() -> None:
    known = {metric.sample_name for metric in CATALOG.values()}
    text = yaml.safe_dump(load_alerts().model_dump(mode="json"))
    used = {line.split(": ")[1] for line in text.splitlines() if line.strip().startswith(("metric:", "- metric:"))}
    assert used <= known
    assert len(used) > 10


def test_expressions() -> None:
    conditions = [
        {"type": "rate", "metric": "a_total", "where": {"s": 'x"y'}, "by": ["r"], "over_s": 60, "value": 2},
        {"type": "change", "metric": "b", "over_s": 90, "relative": True, "op": "<", "value": -0.5},
        {"type": "absence", "metric": "c", "over_s": 1.5},
    ]
    rules = [{"name": f"R{i}", "when": when, "summary": "s"} for i, when in enumerate(conditions)]
    made = [expression(rule.when) for rule in AlertsConfig(rules=rules).rules]
    assert made == [
        'sum by (r) (rate(a_total{s="x\\"y"}[60s])) > 2',
        "(b - b offset 90s) / abs(b offset 90s) < -0.5",
        "absent_over_time(c[1500ms])",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: [{name: A, when: {type: threshold, metric: m, value: 1, take: mean}, summary: s}]", "needs a window"),
        ("rules: [{name: A, when: {type: threshold, metric: m, value: 1, over_s: 5}, summary: s}]", "has no window"),
        (
            "rules: [{name: A, when: {type: absence, metric: m, over_s: 1}, summary: '{a.b}'}]",
            "not the name of a label",
        ),
        ("tick: 1", "Extra inputs"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "alerts.yaml"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=said) as refused:
        load_alerts(path)
    assert "alerts.yaml" in refused.value.message


def test_the_grafana_dashboard_speaks_of_declared_metrics() -> None:
    board = json.loads((ROOT / "configs/grafana/chatgrpo.json").read_text())
    used = set(re.findall(r"chatgrpo_[a-z0-9_]+", json.dumps([panel["targets"] for panel in board["panels"]])))
    known = {metric.sample_name for metric in CATALOG.values()}
    assert {name.removesuffix("_bucket") for name in used} <= known
    assert len(used) > 15
