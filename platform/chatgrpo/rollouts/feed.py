"""The learner's side of rollouts that run beside it: orders groups from workers, serves them to it step by step.

One thread owns all of it and does one thing at a time: it hears a worker or the learner, then asks `dispatch.decide`
and carries out the answer. An order is in exactly one of four places, and leaves the last of them once:

    waiting --send--> flights --report--> held --take--> a step
       ^                 | worker lost      | too old
       +-----------------+------------------+
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from chatgrpo.clock import Clock, SystemClock
from chatgrpo.rollouts import dispatch
from chatgrpo.rollouts.dispatch import Facts, Flight, Held, Rules, Seat
from chatgrpo.rollouts.episode import Group
from chatgrpo.rollouts.fleet import Fleet, Lost, Worker
from chatgrpo.rollouts.stats import RolloutStats
from chatgrpo.rollouts.worker import Order, Report, Weights

logger = logging.getLogger(__name__)

# How often it looks whether any worker has come up at all.
_LOOK_S = 1.0


class RolloutWorkersLost(RuntimeError):
    """No rollout worker is left, or none ever came up."""


@dataclass(slots=True, kw_only=True)
class Served:
    """What a step gets. `stats` and `rewards` are sums over the reports since the last step, the rest counts of what
    happened since then; `queue_wait_s`: how long the step's groups lay ready, summed."""

    groups: list[Group] = field(default_factory=list)
    stats: RolloutStats = field(default_factory=RolloutStats)
    rewards: dict[str, float] = field(default_factory=dict)
    stale_groups: int = 0
    replaced_groups: int = 0
    reassigned_groups: int = 0
    worker_restarts: int = 0
    num_workers: int = 0
    queue_wait_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class _Seat:
    """A place in the fleet and the worker that has it. `version` -1: not up, or without weights."""

    index: int
    name: str
    worker: Worker
    starts: int = 1
    version: int = -1
    is_up: bool = False
    orders: dict[str, _Flight] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Flight:
    order: Order
    version: int


@dataclass(frozen=True, slots=True)
class _Held:
    order: Order
    version: int
    group: Group | None
    since: float

    @property
    def teaches(self) -> bool:
        return self.group is None or not self.group.is_zero_variance


class Feed:
    """`draw` gives the next order and is called in the feed's thread; `capacity`: groups that one worker plays at once.

    A worker that is lost is started again, `max_restarts` times for each place; then the place stays empty. Raises,
    from `take`, RolloutWorkersLost when no place is left, or when within `start_timeout_s` no worker came up at all."""

    def __init__(
        self,
        fleet: Fleet,
        rules: Rules,
        *,
        num_workers: int,
        capacity: int,
        draw: Callable[[], Order],
        max_restarts: int,
        start_timeout_s: float,
        name: str = "",
        clock: Clock | None = None,
    ) -> None:
        self._fleet, self._rules, self._capacity, self._draw = fleet, rules, capacity, draw
        self._max_restarts, self._start_timeout_s = max_restarts, start_timeout_s
        self._num_workers, self._prefix, self._clock = num_workers, name, clock or SystemClock()
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._seats: dict[int, _Seat] = {}
        self._next_seat = 0
        self._waiting: list[Order] = []
        self._held: dict[str, _Held] = {}
        self._weights: Weights | None = None
        self._step = 0
        self._num_set_aside = 0
        self._served_at: deque[float] = deque(maxlen=5)
        self._ahead_from = self._clock.monotonic()
        self._asked: Future[Served] | None = None
        self._served = Served()
        self._broken: BaseException | None = None
        self._closed = False
        self._alone_since = self._clock.monotonic()
        self._thread = threading.Thread(target=self._run, name="rollout-feed", daemon=True)

    # The learner's calls

    def start(self, weights: Weights, *, step: int, orders: Sequence[Order] = ()) -> None:
        """Begins to play for step `step`; `orders` that an interrupted run had not trained on come first."""
        self._step, self._waiting = step, sorted(orders, key=lambda o: o.number)
        self.publish(weights)  # before any worker can say that it is up
        for _ in range(self._num_workers):
            self.join()
        self._thread.start()

    def publish(self, weights: Weights) -> None:
        """New weights for all workers. Returns at once."""
        shared = self._fleet.share(weights)
        self._inbox.put(partial(self._on_weights, shared))

    def take(self, step: int) -> Served:
        """The groups of a step; waits for them. One caller."""
        assert step == self._step, (step, self._step)
        asked: Future[Served] = Future()
        self._inbox.put(partial(self._on_asked, asked))
        return asked.result()

    def snapshot(self, read: Callable[[], Any]) -> tuple[Any, list[Order]]:
        """`read()` and all orders drawn and not yet taken, at one moment between two draws."""
        found: Future[tuple[Any, list[Order]]] = Future()
        self._inbox.put(lambda: found.set_result((read(), self._open_orders())))
        return found.result()

    def join(self) -> None:
        """One more place in the fleet."""
        self._inbox.put(self._join)

    def leave(self, index: int) -> None:
        """Place `index` closes; what its worker was playing is played elsewhere."""
        self._inbox.put(partial(self._leave, index))

    def close(self) -> None:
        """Ends all workers and the thread."""
        self._inbox.put(self._on_close)
        if self._thread.is_alive():
            self._thread.join()
        else:
            self._on_close()

    # Its thread

    def _run(self) -> None:
        while not self._closed:
            try:
                act = self._inbox.get(timeout=self._patience_s())
            except Empty:
                act = self._look
            try:
                act()
                if self._broken is None:
                    self._carry_out()
            except BaseException as error:  # noqa: BLE001 - belongs to the learner, who asks next
                self._broken = error
            if self._broken is not None and self._asked is not None:
                self._asked.set_exception(self._broken)
                self._asked = None

    def _patience_s(self) -> float:
        until_ahead = self._ahead_from - self._clock.monotonic()
        return min(_LOOK_S, until_ahead) if until_ahead > 0 else _LOOK_S

    def _carry_out(self) -> None:
        decision = dispatch.decide(self._facts(), self._rules)
        by_number = {held.order.number: group_id for group_id, held in self._held.items()}
        for number in decision.stale:
            held = self._held.pop(by_number[number])
            logger.warning("group=%s is too old for step %d: played again", held.order.group_id, self._step)
            self._served.stale_groups += 1
            self._wait_again([held.order])
        for number in decision.set_aside:
            del self._held[by_number[number]]
            self._num_set_aside += 1
            self._served.replaced_groups += 1
        names = {seat.name: seat for seat in self._seats.values()}
        orders: dict[str, list[Order]] = {}
        for name in decision.send:
            orders.setdefault(name, []).append(self._waiting.pop(0) if self._waiting else self._draw())
        if decision.send:
            pause_s = dispatch.spacing_s(list(self._served_at), len(decision.send), self._rules)
            self._ahead_from = self._clock.monotonic() + pause_s
        for name, batch in orders.items():
            seat = names[name]
            seat.orders.update({order.group_id: _Flight(order, seat.version) for order in batch})
            seat.worker.play(batch)
        if decision.take is not None and self._asked is not None:
            self._serve([self._held.pop(by_number[number]) for number in decision.take])

    def _serve(self, taken: Sequence[_Held]) -> None:
        assert self._asked is not None
        now, served, asked = self._clock.monotonic(), self._served, self._asked
        replaces = self._rules.max_set_aside > 0
        self._served_at.append(now)
        served.groups = [h.group for h in taken if h.group is not None and (h.teaches or not replaces)]
        served.queue_wait_s = sum(now - h.since for h in taken)
        served.num_workers = sum(seat.is_up for seat in self._seats.values())
        self._asked, self._served, self._num_set_aside = None, Served(), 0
        self._step += 1
        asked.set_result(served)
        # The step's places are free now: workers may play ahead while the learner learns.
        self._inbox.put(lambda: None)

    def _facts(self) -> Facts:
        return Facts(
            step=self._step,
            seats=[
                Seat(worker=s.name, version=s.version, num_groups=len(s.orders), capacity=self._capacity)
                for s in self._seats.values()
                if s.version >= 0
            ],
            flights=[
                Flight(number=f.order.number, version=f.version)
                for s in self._seats.values()
                for f in s.orders.values()
            ],
            held=[Held(number=h.order.number, version=h.version, teaches=h.teaches) for h in self._held.values()],
            num_set_aside=self._num_set_aside,
            may_play_ahead=self._clock.monotonic() >= self._ahead_from,
        )

    # What it hears

    def _on_weights(self, weights: Weights) -> None:
        self._weights = weights
        for seat in self._seats.values():
            if seat.is_up:
                seat.worker.load(weights)

    def _on_asked(self, asked: Future[Served]) -> None:
        self._asked = asked

    def _on_news(self, name: str, news: Report | Lost) -> None:
        seat = next((s for s in self._seats.values() if s.name == name), None)
        if seat is None:
            return  # it was lost before, or has left
        if isinstance(news, Lost):
            self._on_lost(seat, news)
            return
        if not seat.is_up:
            seat.is_up = True
            logger.info("rollout_worker_up worker=%s", name)
            assert self._weights is not None  # see `start`
            seat.worker.load(self._weights)
        seat.version = news.version
        self._served.stats = self._served.stats + news.stats
        for key, value in news.rewards.items():
            self._served.rewards[key] = self._served.rewards.get(key, 0.0) + value
        now = self._clock.monotonic()
        for group_id, group in news.settled.items():
            flight = seat.orders.pop(group_id)
            oldest = None if group is None else group.oldest_version
            self._held[group_id] = _Held(flight.order, flight.version if oldest is None else oldest, group, now)

    def _on_lost(self, seat: _Seat, lost: Lost) -> None:
        if lost.fault is not None:
            raise lost.fault
        flights = [flight.order for flight in seat.orders.values()]
        again = seat.starts <= self._max_restarts
        logger.warning(
            "rollout_worker_lost worker=%s cause=%s groups=%d restart=%s", seat.name, lost.cause, len(flights), again
        )
        del self._seats[seat.index]
        seat.worker.close()
        self._wait_again(flights)
        self._served.reassigned_groups += len(flights)
        if again:
            self._served.worker_restarts += 1
            self._start(seat.index, starts=seat.starts + 1)
        if not self._seats:
            raise RolloutWorkersLost(
                f"no rollout worker is left: the last one ended after {seat.starts} starts with: {lost.cause}"
            )
        self._mark_alone()

    def _on_close(self) -> None:
        self._closed = True
        for seat in self._seats.values():
            seat.worker.close()
        self._seats.clear()

    # Places

    def _join(self) -> None:
        self._start(self._next_seat, starts=1)
        self._next_seat += 1

    def _leave(self, index: int) -> None:
        seat = self._seats.pop(index, None)
        if seat is None:
            return
        seat.worker.close()
        self._wait_again([flight.order for flight in seat.orders.values()])
        if not self._seats:
            raise RolloutWorkersLost("no rollout worker is left: all have been told to leave")
        self._mark_alone()

    def _start(self, index: int, *, starts: int) -> None:
        # A worker takes seconds to come up, and its place has a limited number of starts: no need to wait in between.
        name = f"{self._prefix}{index}.{starts}"
        worker = self._fleet.start(name, lambda who, news: self._inbox.put(partial(self._on_news, who, news)))
        self._seats[index] = _Seat(index=index, name=name, worker=worker, starts=starts)

    def _mark_alone(self) -> None:
        if not any(seat.is_up for seat in self._seats.values()):
            self._alone_since = self._clock.monotonic()

    def _look(self) -> None:
        if any(seat.is_up for seat in self._seats.values()):
            return
        if self._clock.monotonic() - self._alone_since > self._start_timeout_s:
            raise RolloutWorkersLost(
                f"none of {len(self._seats)} rollout workers came up within {self._start_timeout_s:g} s; has the "
                "cluster room for rollout_resources beside the training workers?"
            )

    def _wait_again(self, orders: Sequence[Order]) -> None:
        self._waiting = sorted([*self._waiting, *orders], key=lambda o: o.number)

    def _open_orders(self) -> list[Order]:
        flights = [f.order for seat in self._seats.values() for f in seat.orders.values()]
        return sorted([*self._waiting, *flights, *(h.order for h in self._held.values())], key=lambda o: o.number)
