"""POST /api/v2/system/scale and its old path; what an order means; how order and advice go together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest

from actors.scaling_policy import PATIENCE_S, target
from chatgrpo.api.app import create_app
from chatgrpo.api.services import Services
from chatgrpo.monitoring.advice_config import AdviceConfig
from chatgrpo.monitoring.scale_orders import Order, Scaled, scale


@dataclass
class FakeScaling:
    """Two chat replicas and one of the API."""

    asked: list[tuple[float, bool, float | None]] = field(default_factory=list)

    async def scale(self, factor: float, *, everything: bool, until: float | None) -> Sequence[Scaled]:
        self.asked.append((factor, everything, until))
        wanted = {"ChatModel": 2} | ({"Api": 1} if everything else {})
        return [scale(name, before=n, factor=factor, least=1, most=4) for name, n in wanted.items()]


@pytest.fixture
def scaling() -> FakeScaling:
    return FakeScaling()


@pytest.fixture
async def scalable(services: Services, scaling: FakeScaling) -> AsyncIterator[httpx.AsyncClient]:
    config = services.config.model_copy(update={"advice": AdviceConfig(apply=True, ahead_s=600)})
    transport = httpx.ASGITransport(create_app(replace(services, config=config, scaling=scaling)))
    async with httpx.AsyncClient(transport=transport, base_url="http://platform") as client:
        yield client


async def test_the_old_path_scales_and_says_what_it_did(scalable: httpx.AsyncClient, scaling: FakeScaling) -> None:
    answer = await scalable.post("/api/scale", json={"scale_factor": 3, "apply_to_all": True})
    assert (answer.status_code, answer.headers["link"]) == (200, '</api/v2/system/scale>; rel="successor-version"')
    chat, api = answer.json()["scaled"]
    bounds = {"min_replicas": 1, "max_replicas": 4}
    assert chat == {"deployment": "ChatModel", "replicas_before": 2, "replicas": 4, "bounded": True} | bounds
    assert api == {"deployment": "Api", "replicas_before": 1, "replicas": 3, "bounded": False} | bounds
    # Where advice is applied an order stands as long as the advice looks ahead.
    (asked,) = scaling.asked
    assert asked[2] is not None
    assert answer.json()["stands_until"] is not None


@pytest.mark.parametrize("body", [{}, {"scale_factor": 0}, {"scale_factor": -1}, {"scale_factor": 2, "to": 3}])
async def test_wrong_orders_are_refused(
    scalable: httpx.AsyncClient, scaling: FakeScaling, body: dict[str, Any]
) -> None:
    assert (await scalable.post("/api/v2/system/scale", json=body)).status_code == 422
    assert scaling.asked == []


async def test_without_serve_there_is_nothing_to_scale(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v2/system/scale", json={"scale_factor": 2})
    assert answer.status_code == 409
    assert "does not run on Ray Serve" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("before", "factor", "replicas", "is_bounded"),
    [
        (1, 2, 2, False),
        (1, 1.1, 2, False),
        (10, 1.1, 11, False),
        (3, 0.5, 1, False),
        (5, 0.9, 4, False),
        (3, 1, 3, False),
        (1, 0.5, 1, True),
        (8, 100, 20, True),
    ],
)
def test_a_factor_rounds_away_from_what_is(before: int, factor: float, replicas: int, is_bounded: bool) -> None:
    found = scale("ChatModel", before=before, factor=factor, least=1, most=20)
    assert (found.replicas, found.is_bounded) == (replicas, is_bounded)


@pytest.mark.parametrize(
    ("order", "advice", "found"),
    [
        (None, None, 2),
        (None, {"replicas": 3, "at": 1000.0}, 3),
        (None, {"replicas": 9, "at": 1000.0}, 4),
        (None, {"replicas": 3, "at": 0.0}, 2),  # the hub is down
        (Order(replicas=3, at=1000.0), None, 3),
        (Order(replicas=1, at=1000.0), {"replicas": 3, "at": 1100.0}, 1),  # an order comes first
        (Order(replicas=1, at=1000.0, until=1200.0), {"replicas": 3, "at": 1100.0}, 3),  # and is over
        (Order(replicas=9, at=1000.0), None, 4),
    ],
)
def test_serve_follows_orders_then_fresh_advice(
    order: Order | None, advice: dict[str, float] | None, found: int
) -> None:
    assert target(order, advice, now=1200.0, current=2, least=1, most=4) == (found, None)


def test_advice_to_have_fewer_must_hold() -> None:
    def after(now: float, since: float | None) -> tuple[int, float | None]:
        return target(None, {"replicas": 1, "at": now}, now=now, current=3, least=1, most=4, fewer_since=since)

    assert after(0.0, None) == (3, 0.0)
    assert after(PATIENCE_S - 1, 0.0) == (3, 0.0)
    assert after(PATIENCE_S, 0.0) == (1, None)
