"""The metrics of one process, on prometheus-client. Own figures of a program are a call away:

monitoring.counter("orders_resolved", "Orders that a conversation resolved.", labels=["channel"]).inc(channel="web")
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from chatgrpo.errors import InvalidRequest
from chatgrpo.monitoring.catalog import CATALOG, LABELS_DROPPED, PREFIX, Kind, Merge, Metric

# Beyond so many label sets a metric is a mistake: an id or a path has become a label.
MAX_LABEL_SETS = 500
OTHER = "other"
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Meter:
    """One metric of this process. Label values are keywords; beyond MAX_LABEL_SETS they are counted as `other`."""

    def __init__(self, metric: Metric, registry: CollectorRegistry | None, dropped: Meter | None) -> None:
        options: dict[str, Any] = {"labelnames": metric.labels, "registry": registry, "unit": metric.unit}
        kinds: dict[Kind, Any] = {Kind.COUNTER: Counter, Kind.GAUGE: Gauge, Kind.HISTOGRAM: Histogram}
        if metric.buckets:
            options["buckets"] = metric.buckets
        self.metric = metric
        self._made = kinds[metric.kind](metric.name, metric.help, **options)
        self._dropped = dropped
        self._children: dict[tuple[str, ...], Any] = {}

    def inc(self, amount: float = 1.0, **labels: str) -> None:
        self._child(labels).inc(amount)

    def set(self, value: float, **labels: str) -> None:
        self._child(labels).set(value)

    def observe(self, value: float, *, trace_id: str | None = None, **labels: str) -> None:
        """`trace_id` becomes the exemplar of its bucket: from a slow bucket straight to a slow request."""
        self._child(labels).observe(value, {"trace_id": trace_id} if trace_id else None)

    def _child(self, labels: dict[str, str]) -> Any:
        if labels.keys() != set(self.metric.labels):
            raise InvalidRequest(f"{self.metric.name} has the labels {self.metric.labels}, got {tuple(labels)}")
        if not labels:
            return self._made
        values = tuple(str(labels[name]) for name in self.metric.labels)
        child = self._children.get(values)
        if child is not None:
            return child
        if len(self._children) >= MAX_LABEL_SETS:
            if self._dropped is not None:
                self._dropped.inc(metric=self.metric.name)
            return self._made.labels(*(OTHER,) * len(values))
        child = self._children[values] = self._made.labels(*values)
        return child


class Meters:
    """All metrics of a process, each made when it is first asked for."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._made: dict[str, Meter] = {}
        self._lock = threading.Lock()

    def of(self, metric: Metric) -> Meter:
        """The meter of a declared metric. Raises InvalidRequest when the name is taken by another declaration."""
        with self._lock:
            found = self._made.get(metric.name)
            if found is None:
                found = self._made[metric.name] = Meter(metric, self.registry, self._for_drops(metric))
        if found.metric != metric:
            raise InvalidRequest(f"the metric {metric.name} is declared already, in another way", "name")
        return found

    def _for_drops(self, metric: Metric) -> Meter | None:
        if metric is LABELS_DROPPED:
            return None
        if LABELS_DROPPED.name not in self._made:
            self._made[LABELS_DROPPED.name] = Meter(LABELS_DROPPED, self.registry, None)
        return self._made[LABELS_DROPPED.name]


def custom(kind: Kind, name: str, help: str, labels: Sequence[str], buckets: Sequence[float] = ()) -> Metric:
    """A metric of a program of its own, shown as `chatgrpo_custom_<name>`. Raises InvalidRequest for a wrong name."""
    for text in (name, *labels):
        if not _NAME.fullmatch(text):
            raise InvalidRequest(f"{text!r}: write lower-case letters, digits and underscores", "name")
    full = f"{PREFIX}custom_{name}"
    if full in CATALOG:
        raise InvalidRequest(f"{full} is a metric of the platform; choose another name", "name")
    merge = Merge.NEWEST if kind is Kind.GAUGE else Merge.SUM
    return Metric(name=full, help=help or name, kind=kind, labels=tuple(labels), merge=merge, buckets=tuple(buckets))


PROCESS = Meters()
"""Of this process: what library code and programs count."""


def counter(name: str, help: str = "", *, labels: Sequence[str] = ()) -> Meter:
    """A count that only grows; the same name is the same counter."""
    return PROCESS.of(custom(Kind.COUNTER, name, help, labels))


def gauge(name: str, help: str = "", *, labels: Sequence[str] = ()) -> Meter:
    """A value that goes up and down."""
    return PROCESS.of(custom(Kind.GAUGE, name, help, labels))


def histogram(name: str, help: str = "", *, labels: Sequence[str] = (), buckets: Sequence[float] = ()) -> Meter:
    """A distribution; `buckets` are its upper bounds, by default prometheus-client's."""
    return PROCESS.of(custom(Kind.HISTOGRAM, name, help, labels, buckets))
