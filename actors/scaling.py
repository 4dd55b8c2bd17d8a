"""The API's way to more or fewer replicas: an order that Serve's autoscaling policy reads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

from ray import serve
from ray.exceptions import RayError

from actors.scaling_policy import POLICY, give_order, order_of
from chatgrpo.errors import Conflict, Unavailable
from chatgrpo.monitoring.scale_orders import Order, Scaled, scale

_CHAT = ("ChatModel",)
_EVERYTHING = ("ChatModel", "Api")


class ScaleClient:
    """ScalingService for the application that this replica is part of. All deployments are looked at before the first
    order is given, so that a refusal changes nothing."""

    async def scale(self, factor: float, *, everything: bool, until: float | None) -> Sequence[Scaled]:
        app = serve.get_replica_context().app_name
        found = await _deployments(app)
        now = time.time()
        scaled = [
            _scaled(app, name, found.get(name), factor=factor, now=now)
            for name in (_EVERYTHING if everything else _CHAT)
        ]
        for one in scaled:
            give_order(app, one.deployment, Order(replicas=one.replicas, at=now, until=until))
        return scaled


async def _deployments(app: str) -> dict[str, Any]:
    """What Serve knows of the deployments of an application, as its REST API shows it."""
    client = serve.context._get_global_client()
    assert client is not None, "a replica runs under Serve"
    try:
        details = await client._controller.get_serve_instance_details.remote()
    except RayError as error:
        raise Unavailable("Serve's controller does not answer; try again in a moment") from error
    return cast(dict[str, Any], details["applications"].get(app, {}).get("deployments", {}))


def _scaled(app: str, name: str, found: dict[str, Any] | None, *, factor: float, now: float) -> Scaled:
    if found is None:
        raise Conflict(f"the application {app} has no deployment {name}; deploy the platform anew")
    bounds = found["deployment_config"].get("autoscaling_config")
    if bounds is None:
        fixed = found["deployment_config"].get("num_replicas")
        raise Conflict(
            f"Serve was told num_replicas: {fixed} for {name}; leave it out, deploy again, and it can be scaled"
        )
    if (policy := (bounds.get("policy") or {}).get("policy_function")) != POLICY:
        raise Conflict(f"{name} is scaled by {policy}, which takes no orders; leave out its autoscaling_config")
    order = order_of(app, name)
    # What was ordered a moment ago may not have reached the controller yet.
    before = order.replicas if order is not None and order.stands(now) else found["target_num_replicas"]
    return scale(name, before=before, factor=factor, least=bounds["min_replicas"], most=bounds["max_replicas"])
