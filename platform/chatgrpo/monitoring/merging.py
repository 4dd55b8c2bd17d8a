"""The figures of several processes as one, by the merge rule of each metric."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry

from chatgrpo.monitoring.catalog import CATALOG, Merge
from chatgrpo.monitoring.history import STALE_S, Labels, Row

_ADDS_UP = ("_total", "_bucket", "_count", "_sum")
_RULES = {metric.sample_name: metric.merge for metric in CATALOG.values()}


def rule_of(name: str) -> Merge:
    """Of a name in the exposition. Figures of a program's own follow from their kind."""
    return _RULES.get(name, Merge.SUM if name.endswith(_ADDS_UP) else Merge.NEWEST)


def rows_of(registry: CollectorRegistry) -> list[Row]:
    """What a registry shows now."""
    return [
        (sample.name, dict(sample.labels), float(sample.value))
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]


class Merged:
    """Takes the reports of processes and tells what they make together.

    Counts never fall: what a process has counted stays when it goes, and one that begins anew adds to it. A process
    that is seen for the first time begins at its first report: what it had counted before a hub began anew would look
    like a sudden growth. With `from_zero`, for one process that looks after itself, it begins at zero."""

    def __init__(self, *, from_zero: bool = False) -> None:
        self._from_zero = from_zero
        self._reports: dict[str, tuple[float, dict[tuple[str, Labels], float]]] = {}
        self._totals: dict[tuple[str, Labels], float] = {}

    def report(self, source: str, rows: Iterable[Row], now: float) -> None:
        """The figures of process `source` at `now`; they replace its former ones."""
        current = {(name, frozenset(labels.items())): value for name, labels, value in rows}
        _, former = self._reports.get(source, (now, {}))
        for key, value in current.items():
            if key[0].endswith(_ADDS_UP) and rule_of(key[0]) is Merge.SUM:
                before = former.get(key, 0.0 if former or self._from_zero else value)
                self._totals[key] = self._totals.get(key, 0.0) + (value - before if value >= before else value)
        self._reports[source] = (now, current)

    def rows(self, now: float) -> list[Row]:
        """Gauges are those of the processes that reported lately."""
        self._reports = {s: r for s, r in self._reports.items() if r[0] > now - STALE_S}
        merged: dict[tuple[str, Labels], float] = {}
        for _, current in sorted(self._reports.values(), key=lambda report: report[0]):
            for (name, labels), value in current.items():
                merged[name, labels] = self._join(name, merged.get((name, labels)), value)
        if self._reports:
            merged |= self._totals
        return [(name, dict(labels), value) for (name, labels), value in merged.items()]

    @staticmethod
    def _join(name: str, so_far: float | None, value: float) -> float:
        rule = rule_of(name)
        if so_far is None or rule is Merge.NEWEST:
            return value
        return so_far + value if rule is Merge.SUM else max(so_far, value)
