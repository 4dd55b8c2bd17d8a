"""The same alert rules for a Prometheus server: `python -m chatgrpo.monitoring.prometheus_rules > rules.yaml`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from chatgrpo.monitoring.alert_config import (
    Absence,
    AlertsConfig,
    All,
    BurnRate,
    Change,
    Condition,
    Counted,
    Rate,
    Rule,
    Threshold,
    load_alerts,
)

_OVER_TIME = {"mean": "avg_over_time", "min": "min_over_time", "max": "max_over_time"}


def groups(config: AlertsConfig) -> dict[str, Any]:
    """The content of a rules file."""
    return {"groups": [{"name": "chatgrpo", "rules": [_rule(rule) for rule in config.rules]}]}


def _rule(rule: Rule) -> dict[str, Any]:
    made: dict[str, Any] = {"alert": rule.name, "expr": expression(rule.when)}
    if rule.for_s:
        made["for"] = _duration(rule.for_s)
    annotations = {"summary": _template(rule.summary)} | ({"description": rule.advice} if rule.advice else {})
    return made | {"labels": {"severity": rule.severity}, "annotations": annotations}


def expression(condition: Condition) -> str:
    """A condition in PromQL."""
    match condition:
        case Threshold(take="last"):
            return f"{_selector(condition)} {condition.op} {condition.value:g}"
        case Threshold():
            over = f"{_OVER_TIME[condition.take]}({_selector(condition, condition.over_s)})"
            return f"{over} {condition.op} {condition.value:g}"
        case Rate():
            by = f" by ({', '.join(condition.by)})" if condition.by else ""
            return f"sum{by} (rate({_selector(condition, condition.over_s)})) {condition.op} {condition.value:g}"
        case Change():
            here, before = _selector(condition), f"{_selector(condition)} offset {_duration(condition.over_s)}"
            change = f"({here} - {before})" + (f" / abs({before})" if condition.relative else "")
            return f"{change} {condition.op} {condition.value:g}"
        case Absence():
            return f"absent_over_time({_selector(condition, condition.over_s)})"
        case BurnRate():
            limit = condition.factor * (1 - condition.objective)
            shares = (_share(condition, over_s) for over_s in (condition.long_s, condition.short_s))
            return " and ".join(f"{share} > {limit:g}" for share in shares)
        case All():
            joint = f" and on ({', '.join(condition.same)}) "
            return joint.join(f"({expression(part)})" for part in condition.conditions)


def _share(condition: BurnRate, over_s: float) -> str:
    bad, total = (f"sum(increase({_selector(c, over_s)}))" for c in (condition.bad, condition.total))
    return f"({bad} / {total})"


def _selector(what: Threshold | Rate | Change | Absence | Counted, over_s: float | None = None) -> str:
    labels = _labels(what.where)
    return f"{what.metric}{labels}" + (f"[{_duration(over_s)}]" if over_s else "")


def _labels(where: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{name}={yaml_quoted(value)}" for name, value in where.items()) + "}" if where else ""


def yaml_quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms" if seconds % 1 else f"{seconds:.0f}s"


def _template(summary: str) -> str:
    """`job {job}: {value:.2f}` -> Go's template."""
    parts = []
    for text, name, form, _ in Formatter().parse(summary):
        parts.append(text)
        if name == "value":
            parts.append(
                "{{ $value | humanizePercentage }}" if form and form.endswith("%") else "{{ $value | humanize }}"
            )
        elif name:
            parts.append(f"{{{{ $labels.{name} }}}}")
    return "".join(parts)


if __name__ == "__main__":
    found = load_alerts(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    sys.stdout.write(yaml.safe_dump(groups(found), sort_keys=False, width=120))
