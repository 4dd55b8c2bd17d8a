"""Weights, skipped and failing rewards; a pool that nothing can hold up."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from chatgrpo.environments.base import Task
from chatgrpo.messages import assistant, user
from chatgrpo.rewards.config import NumericReward, PluginReward
from chatgrpo.rewards.pool import RewardPool
from chatgrpo.rewards.registry import reward
from chatgrpo.rewards.rubric import Rubric, Score
from chatgrpo.rollouts.episode import Episode

TASK = Task(task_id="t", messages=(user("?"),), answer="1")
EPISODE = Episode(
    token_ids=(1, 2),
    completion_mask=(False, True),
    logprobs=(0.0, -1.0),
    prompt_length=1,
    turns=(),
    messages=(user("?"), assistant("1")),
    truncated=False,
)
release, began = threading.Event(), threading.Event()


@reward("test_pool_says")
def _says(task: Task, episode: Episode, *, value: Any) -> Any:
    return value


@reward("test_pool_raises")
def _raises(task: Task, episode: Episode) -> float:
    raise KeyError("broken")


@reward("test_pool_hangs")
def _hangs(task: Task, episode: Episode) -> float:
    began.set()
    release.wait()
    return 1.0


@pytest.fixture(autouse=True)
def _release_hanging() -> Iterator[None]:
    release.clear()
    began.clear()
    yield
    release.set()


def says(value: Any, weight: float = 1.0) -> PluginReward:
    return PluginReward(name="test_pool_says", params={"value": value}, weight=weight)


def pooled(*configs: Any, timeout_s: float = 30.0) -> tuple[Score, dict[str, float]]:
    pool = RewardPool(Rubric(configs), timeout_s=timeout_s)
    try:
        score = pool.submit(TASK, EPISODE).result(timeout=30)
        return score, pool.take_metrics()
    finally:
        pool.close()


@pytest.mark.parametrize("use_pool", [True, False])
def test_total_is_the_weighted_sum_of_what_applied(use_pool: bool) -> None:
    configs = [NumericReward(weight=2.0), says(0.5, weight=-1.0), says(None), says(float("nan"))]
    score = pooled(*configs)[0] if use_pool else Rubric(configs).score(TASK, EPISODE)
    assert score.total == 1.5
    assert score.breakdown == {
        "numeric": 1.0,
        "test_pool_says": 0.5,
        "test_pool_says_2": None,
        "test_pool_says_3": None,
    }
    assert score.failures == {}


def test_nothing_applied_is_no_reward_rather_than_zero() -> None:
    assert Rubric([says(None)]).score(TASK, EPISODE).total is None


@pytest.mark.parametrize(("value", "reason"), [("many", "ValueError"), (float("inf"), "finite"), ([1], "TypeError")])
def test_what_is_no_finite_number_is_a_failure(value: Any, reason: str) -> None:
    score = Rubric([says(value)]).score(TASK, EPISODE)
    assert score.total is None
    assert reason in score.failures["test_pool_says"]


def test_a_raising_reward_leaves_no_total_and_is_counted() -> None:
    score, metrics = pooled(NumericReward(), PluginReward(name="test_pool_raises"))
    assert score.total is None
    assert score.breakdown == {"numeric": 1.0, "test_pool_raises": None}
    assert score.failures == {"test_pool_raises": "KeyError: 'broken'"}
    assert metrics["rewards/test_pool_raises/failures"] == 1
    assert metrics["rewards/numeric/calls"] == 1
    assert "rewards/numeric/failures" not in metrics


def test_a_hanging_reward_times_out_and_is_counted() -> None:
    score, metrics = pooled(NumericReward(), PluginReward(name="test_pool_hangs"), timeout_s=0.05)
    assert score.total is None
    assert score.failures == {"test_pool_hangs": "TimeoutError: no answer within 0.05 s"}
    assert metrics["rewards/test_pool_hangs/timeouts"] == 1


def test_metrics_are_taken_once() -> None:
    pool = RewardPool(Rubric([says(1.0)]), timeout_s=30.0)
    pool.submit(TASK, EPISODE).result(timeout=30)
    assert pool.take_metrics()["rewards/test_pool_says/calls"] == 1
    assert pool.take_metrics() == {}
    pool.close()


def test_a_closed_pool_still_answers_what_was_queued() -> None:
    pool = RewardPool(Rubric([PluginReward(name="test_pool_hangs")]), timeout_s=30.0, max_threads=1)
    running, queued = pool.submit(TASK, EPISODE), pool.submit(TASK, EPISODE)
    assert began.wait(30)
    pool.close()
    assert "closed" in queued.result(timeout=30).failures["test_pool_hangs"]
    release.set()
    assert running.result(timeout=30).total == 1.0


def test_a_hanging_reward_does_not_hold_up_the_end_of_the_process() -> None:
    code = (
        "import threading\n"
        "from chatgrpo.resilience.deadline_pool import DeadlinePool\n"
        "began = threading.Event()\n"
        "pool = DeadlinePool(max_threads=1, name='x')\n"
        "pool.submit(lambda: (began.set(), threading.Event().wait()), timeout_s=600)\n"
        "began.wait()\n"
        "print('end')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "end\n"
