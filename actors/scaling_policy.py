"""Lets Serve have as many replicas as operators order and the metrics hub advises. Both leave their word in the
cluster's key-value store, because a policy runs in Serve's controller and must not wait for an actor."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from chatgrpo.monitoring.advice import Advice
from chatgrpo.monitoring.scale_orders import Order

POLICY: Final = "actors.scaling_policy:wanted"
ADVISED_DEPLOYMENT: Final = "ChatModel"
"""What the advice is about; of other deployments only operators say how many."""
_ADVICE: Final = b"chatgrpo_advised_replicas"
# A hub that has said nothing for so long is down: the number of replicas stays as it is.
STALE_S = 900.0
# Advice to have fewer must hold for so long; an order is carried out at once.
PATIENCE_S = 600.0


def say_advised(advice: Sequence[Advice]) -> None:
    wanted = next((item.wanted for item in advice if item.what == "chat_replicas"), None)
    if wanted is not None:
        _internal_kv_put(_ADVICE, json.dumps({"replicas": wanted, "at": time.time()}).encode(), overwrite=True)


def give_order(app: str, deployment: str, order: Order) -> None:
    _internal_kv_put(_order_key(app, deployment), json.dumps(asdict(order)).encode(), overwrite=True)


def order_of(app: str, deployment: str) -> Order | None:
    raw = _internal_kv_get(_order_key(app, deployment))
    return Order(**json.loads(raw)) if raw else None


def wanted(context: Any) -> tuple[int, dict[str, Any]]:
    """An autoscaling policy of Serve: (number of replicas, state)."""
    raw = _internal_kv_get(_ADVICE) if context.deployment_name == ADVISED_DEPLOYMENT else None
    fewer_since = context.policy_state.get("fewer_since")
    replicas, fewer_since = target(
        order_of(context.app_name, context.deployment_name),
        json.loads(raw) if raw else None,
        now=time.time(),
        current=context.target_num_replicas,
        least=context.capacity_adjusted_min_replicas,
        most=context.capacity_adjusted_max_replicas,
        fewer_since=fewer_since,
    )
    return replicas, {"fewer_since": fewer_since}


def target(
    order: Order | None,
    advice: Mapping[str, float] | None,
    *,
    now: float,
    current: int,
    least: int,
    most: int,
    fewer_since: float | None = None,
) -> tuple[int, float | None]:
    """(replicas, since when fewer are advised). An order that stands comes first, then advice, then what is."""
    if order is not None and order.stands(now):
        return min(most, max(least, order.replicas)), None
    fresh = advice is not None and now - advice["at"] <= STALE_S
    asked = int(advice["replicas"]) if advice is not None and fresh else current
    bounded = min(most, max(least, asked))
    if bounded >= current or current > most:
        return bounded, None
    since = now if fewer_since is None else fewer_since
    return (bounded, None) if now - since >= PATIENCE_S else (current, since)


def _order_key(app: str, deployment: str) -> bytes:
    return f"chatgrpo_ordered_replicas:{app}:{deployment}".encode()
