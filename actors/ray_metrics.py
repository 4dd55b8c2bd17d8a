"""The platform's figures among Ray's own, so that the Ray dashboard and its Prometheus have them too."""

from __future__ import annotations

from collections.abc import Iterable

from ray.util.metrics import Counter, Gauge

from chatgrpo.monitoring.catalog import CATALOG, Kind, Metric
from chatgrpo.monitoring.history import Labels, Row


class RayMetrics:
    """Given merged figures again and again, by one process. Histograms are told as the sum and the number of what was
    observed: Ray's own buckets cannot be filled from counts."""

    def __init__(self) -> None:
        self._made: dict[str, Counter | Gauge] = {}
        self._counted: dict[tuple[str, Labels], float] = {}

    def show(self, rows: Iterable[Row]) -> None:
        for name, labels, value in rows:
            base = name.removesuffix("_total").removesuffix("_count").removesuffix("_sum")
            metric = CATALOG.get(base)
            if metric is None or name.endswith("_bucket"):
                continue
            if metric.kind is Kind.GAUGE:
                self._gauge(name, metric).set(value, tags=labels)
            else:
                self._count(name, metric, labels, value)

    def _gauge(self, name: str, metric: Metric) -> Gauge:
        if name not in self._made:
            self._made[name] = Gauge(name, description=metric.help, tag_keys=metric.labels)
        made = self._made[name]
        assert isinstance(made, Gauge)
        return made

    def _count(self, name: str, metric: Metric, labels: dict[str, str], value: float) -> None:
        if name not in self._made:
            # Ray appends `_total` itself.
            self._made[name] = Counter(name.removesuffix("_total"), description=metric.help, tag_keys=metric.labels)
        made, key = self._made[name], (name, frozenset(labels.items()))
        assert isinstance(made, Counter)
        grown = value - self._counted.get(key, 0.0)
        # Ray refuses to count by nothing; a fall is a hub that began anew.
        self._counted[key] = value
        if grown > 0:
            made.inc(grown, tags=labels)
