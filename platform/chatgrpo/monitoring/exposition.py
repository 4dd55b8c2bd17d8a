"""Several registries as one text: OpenMetrics for who asks for it (with exemplars), else Prometheus' own format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector


class _Together(Collector):
    def __init__(self, registries: Sequence[CollectorRegistry]) -> None:
        self._registries = registries

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for registry in self._registries:
            for family in registry.collect():
                if family.name in families:
                    families[family.name].samples += family.samples
                else:
                    families[family.name] = family
        return families.values()


def expose(registries: Sequence[CollectorRegistry], accept: str) -> tuple[bytes, str]:
    """(text, content type). `accept` is the header of the request. Registries may
    share a metric, but no label set of it."""
    together = CollectorRegistry(auto_describe=False)
    together.register(_Together(registries))
    encode, content_type = choose_encoder(accept)
    return encode(together), content_type
