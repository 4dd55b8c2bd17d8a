"""Dynamic sampling as a value."""

from __future__ import annotations

from dataclasses import replace

from chatgrpo.environments.base import Task
from chatgrpo.messages import user
from chatgrpo.rollouts.episode import Episode, Group
from chatgrpo.rollouts.sampling import decide

EPISODE = Episode(
    token_ids=(1, 2),
    completion_mask=(False, True),
    logprobs=(0.0, -0.5),
    prompt_length=1,
    turns=(),
    messages=(user("?"),),
    truncated=False,
)


def group(name: str, *rewards: float | None) -> Group:
    episodes = tuple(replace(EPISODE, reward=r) for r in rewards)
    return Group(group_id=name, task=Task(task_id=name, messages=()), episodes=episodes)


A, B, C = group("a", 0.0, 1.0), group("b", 1.0, 0.0), group("c", 0.5, 1.0)
FLAT, UNJUDGED, ONE_JUDGED = group("flat", 1.0, 1.0), group("none", None, None), group("one", None, 1.0)


def test_flat_groups_are_replaced() -> None:
    decision = decide([A, FLAT, B, UNJUDGED, ONE_JUDGED], wanted=4, round=0, max_rounds=3)
    assert decision.keep == (A, B)
    assert decision.resample == 2
    assert not decision.done


def test_enough_groups_end_the_step_and_the_oldest_are_kept() -> None:
    decision = decide([A, FLAT, B, C], wanted=2, round=1, max_rounds=3)
    assert decision.keep == (A, B)
    assert decision.done


def test_after_the_last_round_the_step_goes_on_with_what_there_is() -> None:
    decision = decide([FLAT, A], wanted=2, round=3, max_rounds=3)
    assert decision.keep == (A,)
    assert decision.done
