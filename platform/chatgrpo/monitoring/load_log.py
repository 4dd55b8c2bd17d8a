"""The load of every minute, for two weeks: what forecasts look at. Lines of JSON in a file, so that a restart of the
hub does not forget the seasons."""

from __future__ import annotations

import json
import logging
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

MINUTE_S = 60.0
KEEP_S = 14 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPoint:
    """A minute: replies being written at once and jobs that ran or waited."""

    at: float
    replies: float
    jobs: float


class LoadLog:
    """`path` None keeps the points in memory only."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.points: list[LoadPoint] = _read(path) if path is not None else []

    def is_due(self, now: float) -> bool:
        return not self.points or now - self.points[-1].at >= MINUTE_S

    def add(self, point: LoadPoint) -> None:
        """Points come in the order of their time."""
        self.points.append(point)
        first = bisect_left(self.points, point.at - KEEP_S, key=lambda p: p.at)
        # The file is written anew once a tenth of it is too old.
        is_old = first > len(self.points) / 10
        if is_old:
            self.points = self.points[first:]
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("w" if is_old else "a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(p)) + "\n" for p in (self.points if is_old else [point]))
        except OSError as error:
            logger.warning("the load of this minute is kept in memory only: %s", error)


def resampled(points: Sequence[LoadPoint], figure: str, *, step_s: float, since: float, until: float) -> list[float]:
    """Means of equal steps; a step without points repeats the one before. Empty when nothing is known since then."""
    sums: dict[int, tuple[float, int]] = {}
    for point in points[bisect_left(points, since, key=lambda p: p.at) :]:
        if point.at <= until:
            step = int((point.at - since) // step_s)
            total, count = sums.get(step, (0.0, 0))
            sums[step] = (total + float(getattr(point, figure)), count + 1)
    if not sums:
        return []
    values: list[float] = []
    for step in range(min(sums), max(sums) + 1):
        total, count = sums.get(step, (0.0, 0))
        values.append(total / count if count else values[-1])
    return values


def _read(path: Path) -> list[LoadPoint]:
    """What can be read of it: the last line of a hub that was killed may be half a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        logger.warning("the load of past days cannot be read: %s", error)
        return []
    points = []
    for line in lines:
        try:
            points.append(LoadPoint(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return sorted(points, key=lambda p: p.at)
