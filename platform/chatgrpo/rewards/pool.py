"""Rewards computed beside generation: a score is asked for the moment its episode ends."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from concurrent.futures import Future
from functools import partial

from chatgrpo.environments.base import Task
from chatgrpo.resilience.deadline_pool import DeadlinePool
from chatgrpo.rewards.base import Reward
from chatgrpo.rewards.rubric import Rubric, Score, checked, describe
from chatgrpo.rollouts.episode import Episode

logger = logging.getLogger(__name__)


class RewardPool:
    """Every reward of every episode is a call of its own with its own deadline, so one that hangs costs only itself.

    Neither a hanging nor a raising reward ever blocks the run or the end of the process."""

    def __init__(self, rubric: Rubric, *, timeout_s: float, max_threads: int = 16) -> None:
        self.rubric = rubric
        self._timeout_s = timeout_s
        self._pool = DeadlinePool(max_threads=max_threads, name="reward")
        self._lock = threading.Lock()
        self._counters: dict[str, float] = defaultdict(float)

    def submit(self, task: Task, episode: Episode) -> Future[Score]:
        """The future always yields a Score; what failed is named in it."""
        scoring = _Scoring(self.rubric)
        for name, reward in self.rubric.rewards.items():
            call = self._pool.submit(partial(self._timed, name, reward, task, episode), timeout_s=self._timeout_s)
            call.add_done_callback(partial(self._settle, scoring, name, task.task_id))
        return scoring.future

    def take_metrics(self) -> dict[str, float]:
        """Since the last call, by reward name: calls, failures, timeouts, seconds (thread time of calls that ended)."""
        with self._lock:
            taken, self._counters = dict(self._counters), defaultdict(float)
        return taken

    def close(self) -> None:
        self._pool.close()

    def _timed(self, name: str, reward: Reward, task: Task, episode: Episode) -> float | None:
        started = time.monotonic()
        try:
            return checked(reward(task, episode))
        finally:
            self._count(name, "seconds", time.monotonic() - started)

    def _settle(self, scoring: _Scoring, name: str, task_id: str, call: Future[float | None]) -> None:
        self._count(name, "calls")
        error = RuntimeError("the reward pool was closed") if call.cancelled() else call.exception()
        if error is None:
            scoring.settle(name, call.result(), None)
            return

        self._count(name, "timeouts" if isinstance(error, TimeoutError) else "failures")
        logger.warning("reward_failed reward=%s task=%s cause=%s", name, task_id, describe(error))
        scoring.settle(name, None, describe(error))

    def _count(self, name: str, what: str, amount: float = 1.0) -> None:
        with self._lock:
            self._counters[f"rewards/{name}/{what}"] += amount


class _Scoring:
    """Waits for all rewards of one episode."""

    def __init__(self, rubric: Rubric) -> None:
        self.future: Future[Score] = Future()
        self._rubric = rubric
        self._lock = threading.Lock()
        self._values: dict[str, float | None] = {}
        self._failures: dict[str, str] = {}

    def settle(self, name: str, value: float | None, failure: str | None) -> None:
        with self._lock:
            self._values[name] = value
            if failure is not None:
                self._failures[name] = failure
            complete = len(self._values) == len(self._rubric.rewards)
        if complete:
            self.future.set_result(self._rubric.combine(self._values, self._failures))
