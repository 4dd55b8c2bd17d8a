"""The learner's side of a fleet: every order comes out once, whoever plays it and whoever dies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from chatgrpo.environments.base import Task
from chatgrpo.errors import InvalidRequest
from chatgrpo.rollouts.dispatch import Rules
from chatgrpo.rollouts.episode import Episode, Group, Turn
from chatgrpo.rollouts.feed import Feed, RolloutWorkersLost
from chatgrpo.rollouts.fleet import Lost, Tell
from chatgrpo.rollouts.worker import Order, Report, Weights


def group(order: Order, *, version: int, rewards: tuple[float, float] = (0.0, 1.0)) -> Group:
    episodes = tuple(
        Episode(
            token_ids=(1, 2),
            completion_mask=(False, True),
            logprobs=(0.0, -1.0),
            prompt_length=1,
            turns=(Turn(start=1, end=2, finish_reason="stop", weight_version=version),),
            messages=(),
            truncated=False,
            reward=reward,
        )
        for reward in rewards
    )
    return Group(group_id=order.group_id, task=Task(task_id=order.group_id, messages=()), episodes=episodes)


@dataclass
class ScriptedWorker:
    """Comes up and loads weights at once; `act` decides what it does with an order."""

    name: str
    tell: Tell
    act: Callable[[ScriptedWorker, Order], None]
    version: int = -1
    orders: list[Order] = field(default_factory=list)
    is_closed: bool = False

    def play(self, orders: Sequence[Order]) -> None:
        for order in orders:
            self.orders.append(order)
            self.act(self, order)

    def load(self, weights: Weights) -> None:
        self.version = weights.version
        self.tell(self.name, Report(version=self.version))

    def close(self) -> None:
        self.is_closed = True

    def settle(self, order: Order, **kwargs: Any) -> None:
        self.tell(self.name, Report(version=self.version, settled={order.group_id: group(order, **kwargs)}))


@dataclass
class ScriptedFleet:
    act: Callable[[ScriptedWorker, Order], None]
    workers: list[ScriptedWorker] = field(default_factory=list)

    def share(self, weights: Weights) -> Weights:
        return weights

    def start(self, name: str, tell: Tell) -> ScriptedWorker:
        worker = ScriptedWorker(name, tell, self.act)
        self.workers.append(worker)
        tell(name, Report(version=-1))
        return worker


def plays(worker: ScriptedWorker, order: Order) -> None:
    worker.settle(order, version=worker.version)


def make(fleet: Any, *, k: int = 1, workers: int = 1, steps: int = 20, **rules: int) -> Feed:
    drawn = iter(range(1000))

    def draw() -> Order:
        number = next(drawn)
        return Order(number=number, group_id=f"g{number}", task_index=number)

    return Feed(
        fleet,
        Rules(wanted=2, max_staleness=k, total_steps=steps, **rules),
        num_workers=workers,
        capacity=4,
        draw=draw,
        max_restarts=1,
        start_timeout_s=60.0,
    )


def run(feed: Feed, *, steps: int, orders: Sequence[Order] = ()) -> list[list[str]]:
    """The ids that each step got."""
    feed.start(Weights(version=0, tensors=None), step=0, orders=orders)
    taken = []
    for step in range(steps):
        taken.append([g.group_id for g in feed.take(step).groups])
        feed.publish(Weights(version=step + 1, tensors=None))
    return taken


@pytest.mark.parametrize("k", [0, 2])
def test_every_step_gets_its_groups_in_the_order_of_their_tasks(k: int) -> None:
    feed = make(ScriptedFleet(plays), k=k)
    try:
        assert run(feed, steps=4) == [[f"g{2 * i}", f"g{2 * i + 1}"] for i in range(4)]
    finally:
        feed.close()


def test_a_worker_that_is_lost_neither_loses_nor_doubles_a_group() -> None:
    told_twice: list[Order] = []

    def dies_once(worker: ScriptedWorker, order: Order) -> None:
        if worker.name == "0.1":
            if order.number == 1:
                worker.tell(worker.name, Lost("killed"))
            told_twice.append(order)
            worker.settle(order, version=worker.version)  # what still arrives of a dead worker is nobody's
        else:
            plays(worker, order)

    fleet = ScriptedFleet(dies_once)
    feed = make(fleet, workers=2)
    try:
        taken = run(feed, steps=6)
    finally:
        feed.close()
    assert sorted(i for step in taken for i in step) == sorted(f"g{n}" for n in range(12))
    assert [w.name for w in fleet.workers] == ["0.1", "1.1", "0.2"]
    assert all(w.is_closed for w in fleet.workers)
    assert told_twice


def test_workers_join_and_leave_while_groups_are_out() -> None:
    fleet = ScriptedFleet(lambda worker, order: None if worker.name == "0.1" else plays(worker, order))
    feed = make(fleet)
    feed.start(Weights(version=0, tensors=None), step=0)
    try:
        feed.join()
        feed.leave(0)
        assert [g.group_id for g in feed.take(0).groups] == ["g0", "g1"]
        assert fleet.workers[0].is_closed
        feed.leave(1)
        with pytest.raises(RolloutWorkersLost, match="told to leave"):
            feed.take(1)
    finally:
        feed.close()


def test_a_place_is_given_up_after_its_restarts_and_a_fault_ends_the_run() -> None:
    feed = make(ScriptedFleet(lambda worker, order: worker.tell(worker.name, Lost("out of memory"))))
    feed.start(Weights(version=0, tensors=None), step=0)
    try:
        with pytest.raises(RolloutWorkersLost, match="after 2 starts with: out of memory"):
            feed.take(0)
    finally:
        feed.close()
    fault = InvalidRequest("too long", "max_prompt_length")
    feed = make(ScriptedFleet(lambda worker, order: worker.tell(worker.name, Lost("too long", fault))))
    feed.start(Weights(version=0, tensors=None), step=0)
    try:
        with pytest.raises(InvalidRequest, match="too long"):
            feed.take(0)
    finally:
        feed.close()


def test_groups_of_equal_rewards_are_replaced_within_the_bound() -> None:
    feed = make(
        ScriptedFleet(lambda w, o: w.settle(o, version=w.version, rewards=(1.0, 1.0) if o.number < 5 else (0.0, 1.0))),
        k=0,
        max_set_aside=4,
    )
    feed.start(Weights(version=0, tensors=None), step=0)
    try:
        served = feed.take(0)
        # Four were replaced; the fifth took up a place of its own.
        assert ([g.group_id for g in served.groups], served.replaced_groups) == (["g5"], 4)
    finally:
        feed.close()


def test_what_was_drawn_and_not_taken_can_be_written_down_and_played_later() -> None:
    held_back = ScriptedFleet(lambda worker, order: plays(worker, order) if order.number < 3 else None)
    feed = make(held_back)
    feed.start(Weights(version=0, tensors=None), step=0)
    try:
        assert [g.group_id for g in feed.take(0).groups] == ["g0", "g1"]
        _, orders = feed.snapshot(lambda: None)
    finally:
        feed.close()
    assert [o.number for o in orders] == [2, 3]
    feed = make(ScriptedFleet(plays))
    try:
        again = [Order(number=o.number - 10, group_id=o.group_id, task_index=o.task_index) for o in orders]
        assert run(feed, steps=2, orders=again) == [["g2", "g3"], ["g0", "g1"]]
    finally:
        feed.close()
