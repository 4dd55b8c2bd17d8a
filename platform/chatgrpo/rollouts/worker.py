"""A rollout worker: one engine in one thread that plays groups as they are ordered, over changing weights.

New weights take effect between two tokens. What is being played then goes on with them (partial rollouts); every turn
notes which version sampled which of its tokens. A report is due whenever groups have settled or weights were loaded,
and at least every HEARTBEAT_S: the thread itself makes it, so a thread that hangs falls silent.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any

from chatgrpo.clock import SystemClock
from chatgrpo.environments.base import TaskSource
from chatgrpo.inference.engine import Engine
from chatgrpo.rewards.pool import RewardPool
from chatgrpo.rollouts.collector import Collector
from chatgrpo.rollouts.episode import Group
from chatgrpo.rollouts.params import RolloutParams, Tokens
from chatgrpo.rollouts.stats import RolloutStats

HEARTBEAT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A group to play. `number` orders them by when they were drawn; `group_id` is theirs wherever they are played."""

    number: int
    group_id: str
    task_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What the learner trains, as version `version`: with LoRA the adapters alone. `tensors` is what the worker's
    `Sampler.load` takes."""

    version: int
    tensors: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """News of a worker since its last one. `version`: of the weights it has, -1 before the first were loaded.
    `settled`: groups by their id, None in place of one that was dropped."""

    version: int
    settled: Mapping[str, Group | None] = field(default_factory=dict)
    stats: RolloutStats = field(default_factory=RolloutStats)
    rewards: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """What a worker plays with. `load` puts a version's weights in place, for `engine` and for whoever else holds them;
    it may be called while the engine has work. `context` is entered for as long as the worker plays."""

    engine: Engine
    tokens: Tokens
    source: TaskSource
    params: RolloutParams
    rewards: RewardPool
    seed: int
    load: Callable[[Weights], None]
    context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext


class RolloutWorkerClosed(RuntimeError):
    """There will be no further report."""


class RolloutWorker:
    """`make` builds the sampler in the worker's own thread; what it raises is raised by `report`."""

    def __init__(self, make: Callable[[], Sampler], *, name: str) -> None:
        self._name, self._make = name, make
        self._reports: SimpleQueue[Report | BaseException] = SimpleQueue()
        self._acts: SimpleQueue[Callable[[_Playing], None]] = SimpleQueue()
        self._wake: Callable[[Callable[[], None]], None] | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"rollout-{name}", daemon=True)
        self._thread.start()

    def play(self, orders: Sequence[Order]) -> None:
        """Returns at once."""
        self._do(lambda playing: playing.play(orders))

    def load(self, weights: Weights) -> None:
        """Returns at once; older weights than those that are there or on their way are passed over."""
        self._do(lambda playing: playing.load(weights))

    def report(self) -> Report:
        """Waits for the next one. Raises what ended the worker's thread, RolloutWorkerClosed after `close`."""
        found = self._reports.get()
        if isinstance(found, BaseException):
            self._reports.put(found)
            raise found
        return found

    def close(self) -> None:
        """Ends the thread after the token at hand; unfinished groups are forgotten."""
        self._closed.set()
        self._do(lambda _: None)

    def _do(self, act: Callable[[_Playing], None]) -> None:
        self._acts.put(act)
        if (wake := self._wake) is not None:
            wake(lambda: None)

    def _run(self) -> None:
        try:
            sampler = self._make()
            playing = _Playing(sampler, self._name)
            self._wake = playing.collector.tell
            with sampler.context(), playing.collector:
                while not self._closed.is_set():
                    while not self._acts.empty():
                        self._acts.get()(playing)
                    if (report := playing.report_if_due()) is not None:
                        self._reports.put(report)
                    playing.collector.turn(wait_s=HEARTBEAT_S)
            sampler.rewards.close()
            raise RolloutWorkerClosed(self._name)
        except BaseException as error:  # noqa: BLE001 - whoever reads the reports decides what it means
            self._reports.put(error)


class _Playing:
    """The worker's state; lives in its thread."""

    def __init__(self, sampler: Sampler, name: str) -> None:
        self._sampler, self._name = sampler, name
        self._settled: dict[str, Group | None] = {}
        self._version = -1
        self._is_news = True
        self._told_at = 0.0
        self.collector = Collector(
            sampler.engine,
            sampler.tokens,
            sampler.source,
            sampler.params,
            rewards=sampler.rewards,
            seed=sampler.seed,
            clock=SystemClock(),
            on_settled=self._keep,
        )

    def play(self, orders: Sequence[Order]) -> None:
        for order in orders:
            self.collector.play(self._sampler.source.task(order.task_index), order.group_id)

    def load(self, weights: Weights) -> None:
        if weights.version > self._version:
            self._sampler.load(weights)
            self._version, self._is_news = weights.version, True

    def report_if_due(self) -> Report | None:
        now = time.monotonic()
        if not self._is_news and now - self._told_at < HEARTBEAT_S:
            return None
        settled, self._settled = self._settled, {}
        self._is_news, self._told_at = False, now
        return Report(
            version=self._version,
            settled=settled,
            stats=self.collector.take_stats(),
            rewards=self._sampler.rewards.take_metrics(),
        )

    def _keep(self, group_id: str, group: Group | None) -> None:
        self._settled[group_id] = None if group is None else replace(group, worker=self._name)
        self._is_news = True
