"""Counts of one event loop, without locks and label look-ups: what every request pays for.

prometheus-client's histogram and counter of a request cost 8 us, these below 2; they become its families when somebody
looks.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import Metric as Family
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from chatgrpo.monitoring.catalog import HTTP_QUEUE_SECONDS, HTTP_SECONDS, Metric

# Of each bucket the exemplar changes at most so often: one is looked at, and a thousand a second are not.
EXEMPLAR_EVERY_S = 1.0


def no_trace() -> str | None:
    return None


def family_of(metric: Metric) -> Family:
    return Family(metric.name, metric.help, metric.kind.value, metric.unit)


class HistogramTally:
    """Numbers of seconds by bucket. `bounds`: upper ones, rising, without infinity."""

    __slots__ = ("_bounds", "_changed_at", "_counts", "_exemplars", "_names", "count", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._names: list[str] = [floatToGoString(bound) for bound in (*bounds, math.inf)]  # type: ignore[no-untyped-call]
        self._counts = [0] * (len(bounds) + 1)
        self._exemplars: list[Exemplar | None] = [None] * (len(bounds) + 1)
        self._changed_at = [0.0] * (len(bounds) + 1)
        self.count = 0
        self.sum = 0.0

    def add(self, seconds: float, trace_id: Callable[[], str | None] = no_trace) -> None:
        """`trace_id` is asked when the bucket's exemplar may change: from a slow bucket straight to a slow request."""
        bucket = bisect_left(self._bounds, seconds)
        self._counts[bucket] += 1
        self.count += 1
        self.sum += seconds
        if trace_id is not no_trace:
            now = time.time()
            if now >= self._changed_at[bucket] + EXEMPLAR_EVERY_S:
                found = trace_id()
                if found is not None:
                    self._exemplars[bucket] = Exemplar({"trace_id": found}, seconds, now)
                    self._changed_at[bucket] = now

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """(upper bound, how many were not above it)."""
        so_far = 0
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            so_far += count
            yield bound, so_far

    def show(self, family: Family, labels: dict[str, str]) -> None:
        for (_, count), name, exemplar in zip(self.cumulative(), self._names, self._exemplars, strict=True):
            family.add_sample(f"{family.name}_bucket", {**labels, "le": name}, count, exemplar=exemplar)
        family.add_sample(f"{family.name}_count", labels, self.count)
        family.add_sample(f"{family.name}_sum", labels, self.sum)


class RouteTally:
    """What became of the requests of one route. `answers`: by method and first digit of the status."""

    __slots__ = ("answered", "answers", "num_errors", "queued")

    def __init__(self) -> None:
        self.answers: dict[tuple[str, int], int] = {}
        self.num_errors = 0
        self.answered = HistogramTally(HTTP_SECONDS.buckets)
        self.queued = HistogramTally(HTTP_QUEUE_SECONDS.buckets)
