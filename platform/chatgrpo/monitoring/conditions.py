"""Whether a condition holds, for which series, and with what value. Pure over a history."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from chatgrpo.monitoring.alert_config import Absence, All, BurnRate, Change, Condition, Counted, Rate, Threshold
from chatgrpo.monitoring.history import History, Labels, Point

OPS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
}
_TAKE: Mapping[str, Callable[[Sequence[float]], float]] = {"mean": fmean, "min": min, "max": max}
NOBODY: Labels = frozenset()

# A window counts as covered when its first point lies in its first tenth: points come every few seconds.
_COVERED = 0.1


def holds(condition: Condition, history: History, now: float) -> dict[Labels, float]:
    """Labels of the series for which it holds -> the value to show."""
    match condition:
        case Threshold():
            return _compare(condition.op, condition.value, _taken(condition, history, now))
        case Rate():
            found = history.window(condition.metric, condition.where, now - condition.over_s, now)
            rates: dict[Labels, float] = defaultdict(float)
            for labels, points in found.items():
                rates[_only(labels, condition.by)] += increase(points) / condition.over_s
            return _compare(condition.op, condition.value, rates)
        case Change():
            return _compare(condition.op, condition.value, _changes(condition, history, now))
        case Absence():
            return _absence(condition, history, now)
        case BurnRate():
            return _burn(condition, history, now)
        case All():
            return _all(condition, history, now)


def increase(points: Sequence[Point]) -> float:
    """How much a counter grew. A fall means that its process began anew, at zero."""
    return sum(b if b < a else b - a for (_, a), (_, b) in pairwise(points))


def _compare(op: str, value: float, found: Mapping[Labels, float]) -> dict[Labels, float]:
    return {labels: seen for labels, seen in found.items() if OPS[op](seen, value)}


def _taken(condition: Threshold, history: History, now: float) -> dict[Labels, float]:
    if condition.take == "last":
        found = history.window(condition.metric, condition.where, float("-inf"), now)
        return {labels: points[-1][1] for labels, points in found.items()}
    found = history.window(condition.metric, condition.where, now - condition.over_s, now)
    return {labels: _TAKE[condition.take]([v for _, v in points]) for labels, points in found.items()}


def _changes(condition: Change, history: History, now: float) -> dict[Labels, float]:
    found = history.window(condition.metric, condition.where, now - condition.over_s, now)
    changes = {}
    for labels, points in found.items():
        (first_at, first), (_, last) = points[0], points[-1]
        if first_at > now - condition.over_s * (1 - _COVERED):
            continue
        if not condition.relative:
            changes[labels] = last - first
        elif first:
            changes[labels] = (last - first) / abs(first)
    return changes


def _absence(condition: Absence, history: History, now: float) -> dict[Labels, float]:
    """Counts from the beginning of the history when it was never seen: a platform that starts is not absent."""
    seen = history.last_seen(condition.metric, condition.where)
    since = seen if seen is not None else history.started_at
    if since is None or now - since < condition.over_s:
        return {}
    return {NOBODY: now - since}


def _burn(condition: BurnRate, history: History, now: float) -> dict[Labels, float]:
    budget = 1 - condition.objective
    burns = [_bad_share(condition, history, now, over_s) / budget for over_s in (condition.long_s, condition.short_s)]
    return {NOBODY: burns[0]} if min(burns) > condition.factor else {}


def _bad_share(condition: BurnRate, history: History, now: float, over_s: float) -> float:
    def grown(counted: Counted) -> float:
        return sum(map(increase, history.window(counted.metric, counted.where, now - over_s, now).values()))

    total = grown(condition.total)
    return grown(condition.bad) / total if total else 0.0


def _all(condition: All, history: History, now: float) -> dict[Labels, float]:
    first, *others = (holds(part, history, now) for part in condition.conditions)
    agreed = [{_only(labels, condition.same) for labels in other} for other in others]
    return {
        labels: value
        for labels, value in first.items()
        if all(_only(labels, condition.same) in known for known in agreed)
    }


def _only(labels: Labels, names: Iterable[str]) -> Labels:
    kept = set(names)
    return frozenset(pair for pair in labels if pair[0] in kept)
