"""What people do with the platform, counted where conversations are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chatgrpo.monitoring.catalog import CACHE_LOOKUPS, CONVERSATIONS_STARTED, FEEDBACK, TURNS
from chatgrpo.monitoring.history import Row
from chatgrpo.monitoring.meters import PROCESS


def count_act(method: str, options: Mapping[str, Any]) -> None:
    """An act on a conversation that succeeded, by the name of the method; most are not counted."""
    if method in {"create", "fork"}:
        PROCESS.of(CONVERSATIONS_STARTED).inc()
    elif method == "append":
        PROCESS.of(TURNS).inc()
    elif method == "feedback" and options.get("score") is not None:
        # Scores are from -1 to 1, and a sum that can fall is no count.
        PROCESS.of(FEEDBACK).observe((float(options["score"]) + 1) / 2)


def cache_rows(tier: str, *, num_hits: int, num_misses: int) -> list[Row]:
    """Of a cache that counts by itself, because a look into it must cost nothing."""
    counts = {"hit": num_hits, "miss": num_misses}
    return [(CACHE_LOOKUPS.sample_name, {"tier": tier, "result": result}, float(n)) for result, n in counts.items()]
