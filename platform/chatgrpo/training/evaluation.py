"""Held-out evaluation: greedy replies to tasks that training never sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from chatgrpo.environments.base import Task, TaskSource
from chatgrpo.inference.engine import Engine
from chatgrpo.rewards.pool import RewardPool
from chatgrpo.rollouts.collector import collect
from chatgrpo.rollouts.episode import Group
from chatgrpo.rollouts.params import RolloutParams, Tokens
from chatgrpo.training import ranks

# A reward of 1 up to float noise means that the reply is right.
_RIGHT = 1 - 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """`reward`: mean total. `accuracy`: share of tasks whose first reward of the rubric is 1. An episode that got no
    reward counts as 0 in both. `num_tasks` counts those that were played, over all ranks."""

    reward: float
    accuracy: float
    num_tasks: int

    def metrics(self) -> dict[str, float]:
        return {"eval_reward": self.reward, "eval_accuracy": self.accuracy, "eval_tasks": float(self.num_tasks)}


def evaluate(
    engine: Engine,
    tokens: Tokens,
    source: TaskSource,
    params: RolloutParams,
    rewards: RewardPool,
    *,
    num_tasks: int,
    step: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Every rank plays its share of the first `num_tasks` tasks; all get the same answer."""
    tasks = [source.task(i) for i in range(ranks.rank(), min(num_tasks, len(source)), ranks.world_size())]
    greedy = replace(params, temperature=0.0, top_p=1.0, top_k=0, num_generations=1)
    groups: list[Group] = []
    for start in range(0, len(tasks), params.rollout_batch_size):
        chunk: Sequence[Task] = tasks[start : start + params.rollout_batch_size]
        groups += collect(engine, tokens, source, chunk, greedy, rewards=rewards, seed=0, step=step).groups
        if on_progress:
            on_progress(min(start + len(chunk), len(tasks)), len(tasks))
    episodes = [group.episodes[0] for group in groups]
    first = next(iter(rewards.rubric.rewards))
    total, right, count = ranks.sum_over_ranks(
        [
            sum(e.reward or 0.0 for e in episodes),
            float(sum((e.breakdown.get(first) or 0.0) >= _RIGHT for e in episodes)),
            float(len(episodes)),
        ]
    )
    return Evaluation(reward=total / max(1, count), accuracy=right / max(1, count), num_tasks=int(count))
