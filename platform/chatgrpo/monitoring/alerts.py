"""The life of alerts: pending while a condition holds not long enough, firing, resolved. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from chatgrpo.monitoring.alert_config import Rule
from chatgrpo.monitoring.conditions import holds
from chatgrpo.monitoring.history import History, Labels


class AlertState(StrEnum):
    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One rule about one series. Times are seconds since the epoch; `value` is the newest one seen."""

    rule: Rule
    labels: Labels
    since: float
    value: float
    fired_at: float | None = None
    resolved_at: float | None = None

    @property
    def state(self) -> AlertState:
        if self.fired_at is None:
            return AlertState.PENDING
        return AlertState.FIRING if self.resolved_at is None else AlertState.RESOLVED

    @property
    def summary(self) -> str:
        """A label that the series does not have is shown as ?."""
        known: dict[str, Any] = dict.fromkeys(self.rule.fields, "?") | dict(self.labels) | {"value": self.value}
        return self.rule.summary.format(**known)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.rule.name,
            "severity": self.rule.severity,
            "state": self.state.value,
            "labels": dict(sorted(self.labels)),
            "value": self.value,
            "message": self.summary,
            "advice": self.rule.advice,
            "since": self.since,
            "fired_at": self.fired_at,
            "resolved_at": self.resolved_at,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """No notification about alerts of this rule (None: any) with these labels, until a time."""

    id: str
    rule: str | None
    labels: Mapping[str, str]
    until: float
    by: str
    reason: str

    def covers(self, alert: Alert, now: float) -> bool:
        return (
            now < self.until and self.rule in {None, alert.rule.name} and set(self.labels.items()) <= set(alert.labels)
        )


Active = Mapping[tuple[str, Labels], Alert]


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """`active`: pending and firing alerts. `changed`: those that began to fire or were resolved at this look."""

    active: dict[tuple[str, Labels], Alert]
    changed: list[Alert]


def look(rules: Sequence[Rule], history: History, active: Active, now: float) -> Looked:
    """One look at all rules. An alert fires once, however long it holds."""
    found = {
        (rule.name, labels): (rule, value) for rule in rules for labels, value in holds(rule.when, history, now).items()
    }
    following, changed = {}, []
    for key, (rule, value) in found.items():
        before = active.get(key)
        alert = (
            replace(before, value=value, rule=rule)
            if before
            else Alert(rule=rule, labels=key[1], since=now, value=value)
        )
        if alert.fired_at is None and now - alert.since >= rule.for_s:
            alert = replace(alert, fired_at=now)
            changed.append(alert)
        following[key] = alert
    for key, alert in active.items():
        if key not in found and alert.state is AlertState.FIRING:
            changed.append(replace(alert, resolved_at=now))
    return Looked(active=following, changed=changed)
