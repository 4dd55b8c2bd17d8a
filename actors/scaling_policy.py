"""Lets Serve scale the chat replicas as the metrics hub advises. The hub leaves its word in the cluster's key-value
store, because a policy runs in Serve's controller and must not wait for another actor."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from chatgrpo.monitoring.advice import Advice

_KEY = b"chatgrpo_advised_replicas"
# A hub that has said nothing for so long is down: the number of replicas stays as it is.
STALE_S = 900.0


def say_advised(advice: Sequence[Advice]) -> None:
    wanted = next((item.wanted for item in advice if item.what == "chat_replicas"), None)
    if wanted is not None:
        _internal_kv_put(_KEY, json.dumps({"replicas": wanted, "at": time.time()}).encode(), overwrite=True)


def advised(context: Any) -> tuple[int, dict[str, Any]]:
    """An autoscaling policy of Serve: (number of replicas, state)."""
    raw = _internal_kv_get(_KEY)
    said = json.loads(raw) if raw else None
    return target(
        said,
        now=time.time(),
        current=context.target_num_replicas,
        least=context.capacity_adjusted_min_replicas,
        most=context.capacity_adjusted_max_replicas,
    ), {}


def target(said: Mapping[str, float] | None, *, now: float, current: int, least: int, most: int) -> int:
    fresh = said is not None and now - said["at"] <= STALE_S
    wanted = int(said["replicas"]) if said is not None and fresh else current
    return min(most, max(least, wanted))
