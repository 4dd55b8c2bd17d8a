"""The last stretch of every series: what alert conditions look at. One instance, one owner; not thread-safe."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TypeAlias

Labels: TypeAlias = frozenset[tuple[str, str]]
Point: TypeAlias = tuple[float, float]
"""(seconds, value)"""
Row: TypeAlias = tuple[str, dict[str, str], float]
"""(name in the exposition, labels, value)"""

# A series without a newer point than this has ended: its job is over, its part is gone.
STALE_S = 60.0

# How long it is known of an ended series that there was one.
REMEMBERED_S = 86_400.0


class History:
    """Points of at most `keep_s` seconds and at most `max_series` series; new ones beyond that are not kept."""

    def __init__(self, keep_s: float, max_series: int = 20_000) -> None:
        self._keep_s, self._max = keep_s, max_series
        self._series: dict[str, dict[Labels, deque[Point]]] = {}
        self._count = 0
        self.started_at: float | None = None

    def add(self, now: float, rows: Iterable[Row]) -> None:
        """Values as they are at `now`, which never goes back. What is not a number is left out."""
        self.started_at = now if self.started_at is None else self.started_at
        for name, labels, value in rows:
            if math.isfinite(value):
                self._add(name, frozenset(labels.items()), (now, value))
        self._forget(now - self._keep_s)

    def window(self, name: str, where: Mapping[str, str], start: float, end: float) -> dict[Labels, list[Point]]:
        """Points in (start, end] of the living series that have the labels `where`."""
        wanted = set(where.items())
        found = {}
        for labels, points in self._series.get(name, {}).items():
            if wanted <= labels and points[-1][0] > end - STALE_S:
                found[labels] = [point for point in points if start < point[0] <= end]
        return {labels: points for labels, points in found.items() if points}

    def last_seen(self, name: str, where: Mapping[str, str]) -> float | None:
        """When any series with these labels had its newest point."""
        wanted = set(where.items())
        return max((p[-1][0] for labels, p in self._series.get(name, {}).items() if wanted <= labels), default=None)

    def _add(self, name: str, labels: Labels, point: Point) -> None:
        series = self._series.setdefault(name, {})
        if labels not in series:
            if self._count >= self._max:
                return
            series[labels] = deque()
            self._count += 1
        series[labels].append(point)

    def _forget(self, before: float) -> None:
        for series in self._series.values():
            for labels in list(series):
                points = series[labels]
                # The newest point stays for a while: it says when the series ended.
                while len(points) > 1 and points[0][0] < before:
                    points.popleft()
                if points[-1][0] < before - REMEMBERED_S:
                    del series[labels]
                    self._count -= 1
