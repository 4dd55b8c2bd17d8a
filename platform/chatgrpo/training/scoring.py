"""From judged groups to advantages and the figures of a step. Pure over the groups of one rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from chatgrpo.rollouts.episode import Episode, Group
from chatgrpo.training import ranks
from chatgrpo.training.advantages import advantages, zero_variance_P
from chatgrpo.training.config import TrainConfig
from chatgrpo.training.overlong import overlong_penalty_B


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """`advantages[g][i]` belongs to episode i of group g. `metrics` are over all ranks."""

    advantages: list[list[float]]
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Row:
    """What of an episode travels between ranks."""

    reward: float  # NaN: no reward
    parts: tuple[float, ...]
    num_tokens: int
    truncated: bool


def score(config: TrainConfig, groups: Sequence[Group], weights: dict[str, float]) -> Scored:
    """Advantages of this rank's groups, with batch statistics over the groups of all ranks. `weights`: the rubric's.

    All ranks call it together; a rank may have no groups."""
    names = list(weights)
    mine = [[_row(config, episode, names) for episode in group.episodes] for group in groups]
    per_rank = ranks.gather(mine)
    everyone = [group for part in per_rank for group in part]
    if not everyone:
        return Scored(advantages=[], metrics={})
    rewards_PG = torch.tensor([[r.reward for r in group] for group in everyone], dtype=torch.float64)
    values = advantages(
        rewards_PG,
        estimator=config.advantage_estimator,
        scale_rewards=config.scale_rewards,
        rewards_PGK=torch.tensor([[r.parts for r in group] for group in everyone], dtype=torch.float64),
        weights_K=torch.tensor([weights[n] for n in names], dtype=torch.float64),
        num_tokens_PG=torch.tensor([[r.num_tokens for r in group] for group in everyone], dtype=torch.float64),
    )
    first = sum(len(part) for part in per_rank[: ranks.rank()])
    rows = [r for group in everyone for r in group]
    return Scored(
        advantages=values[first : first + len(mine)].tolist(),
        metrics={
            "reward": _mean([r.reward for r in rows]),
            "reward_std": _mean(torch.std(rewards_PG, dim=1).tolist()),
            "advantage_std": float(values.std()),
            "zero_variance_groups": float(zero_variance_P(rewards_PG).double().mean()),
            "completion_length": _mean([float(r.num_tokens) for r in rows]),
            "truncated": _mean([float(r.truncated) for r in rows]),
            **{f"reward/{name}": _mean([r.parts[k] for r in rows]) for k, name in enumerate(names)},
        },
    )


def _row(config: TrainConfig, episode: Episode, names: Sequence[str]) -> _Row:
    reward = math.nan if episode.reward is None else episode.reward
    if config.overlong_buffer:
        reward += _overlong(config, episode)
    parts = (episode.breakdown.get(name) for name in names)
    return _Row(
        reward=reward,
        parts=tuple(math.nan if part is None else part for part in parts),
        num_tokens=episode.num_sampled,
        truncated=episode.truncated,
    )


def _overlong(config: TrainConfig, episode: Episode) -> float:
    """The penalty of the longest reply: max_completion_length bounds a reply, not the episode."""
    longest = max((turn.end - turn.start for turn in episode.turns), default=0)
    penalty_B = overlong_penalty_B(
        torch.tensor([longest]),
        max_completion_length=config.max_completion_length,
        overlong_buffer=config.overlong_buffer,
    )
    return float(penalty_B[0])


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan
