"""Figures as text: OpenMetrics for who asks for it (with exemplars), else Prometheus' own format."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from chatgrpo.monitoring.catalog import CATALOG, Kind
from chatgrpo.monitoring.history import Row

# In this order they make one histogram of one label set.
_PARTS = ("_bucket", "_count", "_sum")


class _Shown(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Family]:
        return self._families


def expose(rows: Iterable[Row], registries: Sequence[CollectorRegistry], accept: str) -> tuple[bytes, str]:
    """(text, content type). `accept` is the header of the request. `rows` may be those of many processes; the
    `registries` of this one know metrics that a program declared itself, and the exemplars."""
    together = CollectorRegistry(auto_describe=False)
    together.register(_Shown(families_of(rows, registries)))
    encode, content_type = choose_encoder(accept)
    return encode(together), content_type


def families_of(rows: Iterable[Row], registries: Sequence[CollectorRegistry] = ()) -> list[Family]:
    """One family a metric, its samples in the order that OpenMetrics wants."""
    local = {family.name: family for registry in registries for family in registry.collect()}
    exemplars = {
        (sample.name, frozenset(sample.labels.items())): sample.exemplar
        for family in local.values()
        for sample in family.samples
        if sample.exemplar is not None
    }
    found: dict[str, Family] = {}
    for name, labels, value in sorted(rows, key=_order):
        base = _base_of(name, local)
        family = found.get(base) or found.setdefault(base, _family(base, name, local))
        exemplar: Any = exemplars.get((name, frozenset(labels.items())))
        family.add_sample(name, labels, value, exemplar=exemplar)
    return list(found.values())


def _order(row: Row) -> tuple[str, tuple[tuple[str, str], ...], str, float]:
    name, labels, _ = row
    part = next((part for part in _PARTS if name.endswith(part)), "")
    others = tuple(sorted((label, value) for label, value in labels.items() if label != "le"))
    return name.removesuffix(part), others, part, float(labels.get("le", math.inf))


def _base_of(name: str, local: dict[str, Family]) -> str:
    for part in ("_total", *_PARTS):
        base = name.removesuffix(part)
        if base != name and (base in CATALOG or base in local or part in {"_total", "_bucket"}):
            return base
    return name


def _family(base: str, name: str, local: dict[str, Family]) -> Family:
    if base in CATALOG:
        metric = CATALOG[base]
        return Family(base, metric.help, metric.kind.value, metric.unit)
    if base in local:
        return Family(base, local[base].documentation, local[base].type)
    # Declared by a program in another process, which alone knows what it says about it.
    kinds = {"_total": Kind.COUNTER, "_bucket": Kind.HISTOGRAM}
    kind = next((kind for part, kind in kinds.items() if name.endswith(part)), Kind.GAUGE)
    return Family(base, base, kind.value)
