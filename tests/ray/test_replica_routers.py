"""Balancing over real replicas, of which one is slow and one dies."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from chatgrpo.gateway.balancing import Strategy
from chatgrpo.messages import Message, user

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


def replica_class() -> type:
    """By value, because replicas do not have this module."""

    class Replica:
        """The first one to start is `slow`, the others are `quick`."""

        def __init__(self, folder: str) -> None:
            self.name = "quick"
            with suppress(FileExistsError):
                os.close(os.open(f"{folder}/slow", os.O_CREAT | os.O_EXCL))
                self.name = "slow"

        async def stream(self, model: str, messages: tuple[Message, ...]) -> tuple[str, int]:
            await asyncio.sleep(0.5 if self.name == "slow" else 0.01)
            return self.name, os.getpid()

        async def record_routing_stats(self) -> dict[str, float]:
            return {"load": 0.9, "weight": 0.2} if self.name == "slow" else {"load": 0.1, "weight": 1.0}

    return Replica


@pytest.fixture(scope="module")
def running(ray_cluster: str) -> Iterator[None]:
    from ray import serve

    serve.start(proxy_location="Disabled")
    yield
    serve.shutdown()


def deployed(strategy: Strategy, folder: Path) -> Any:
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    router = RequestRouterConfig(
        request_router_class="actors.replica_routers.ReplicaRouter",
        request_router_kwargs={"strategy": str(strategy)},
        request_routing_stats_period_s=0.5,
    )
    made: Any = serve.deployment(
        replica_class(),
        name=f"replicas-{strategy}",
        num_replicas=3,
        max_ongoing_requests=8,
        ray_actor_options={"num_cpus": 0},
        request_router_config=router,
    )
    return serve.run(made.bind(str(folder)), name=str(strategy), route_prefix=None)


def ask(handle: Any, text: str) -> Any:
    return handle.stream.remote("tiny", (user(text),))


def test_the_slow_get_little_and_the_dead_nothing(running: None, tmp_path: Path) -> None:
    handle = deployed(Strategy.LATENCY, tmp_path)
    answers = Counter[tuple[str, int]]()
    began = time.monotonic()
    for number in range(20):
        for answer in [ask(handle, str(number)) for _ in range(4)]:
            answers[answer.result(timeout_s=30)] += 1
    by_name = Counter[str]()
    for (name, _), count in answers.items():
        by_name[name] += count
    assert by_name["slow"] >= 1, "it was tried"
    assert by_name["slow"] < by_name["quick"] / 3, (answers, time.monotonic() - began)
    _, victim = next(found for found in answers if found[0] == "quick")
    os.kill(victim, signal.SIGKILL)
    later = [ask(handle, str(number)).result(timeout_s=30) for number in range(20)]
    assert victim not in {pid for _, pid in later}
    assert len(later) == 20


def test_weights_are_kept_to_and_the_dead_get_nothing(running: None, tmp_path: Path) -> None:
    handle = deployed(Strategy.WEIGHTED, tmp_path)
    give_up_at = time.monotonic() + 60
    # Once the weights have come: 1 of 11, where turns would give 11 of 33.
    while True:
        answers = Counter[tuple[str, int]]()
        for number in range(11):  # few at a time: what a full replica cannot take goes to the slow one
            answers.update(answer.result(timeout_s=30) for answer in [ask(handle, str(number)) for _ in range(3)])
        slow = sum(count for (name, _), count in answers.items() if name == "slow")
        if 1 <= slow <= 5:
            break
        assert time.monotonic() < give_up_at, answers
    _, victim = next(found for found in answers if found[0] == "quick")
    os.kill(victim, signal.SIGKILL)
    later = [ask(handle, str(number)).result(timeout_s=30) for number in range(20)]
    assert victim not in {pid for _, pid in later}


def test_a_conversation_stays_with_its_replica(running: None, tmp_path: Path) -> None:
    handle = deployed(Strategy.STICKY_LEAST_LOADED, tmp_path)
    homes = {text: {ask(handle, text).result(timeout_s=30)[1] for _ in range(3)} for text in map(str, range(8))}
    assert all(len(pids) == 1 for pids in homes.values())
    assert len({pid for pids in homes.values() for pid in pids}) > 1
