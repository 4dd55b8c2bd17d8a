"""The weighted sum of rewards, with each of them told apart.

r = sum over k of w_k r_k, where a reward that does not apply (None or NaN) is left out. A reward that *fails* is
another matter: its episode would be compared with peers that got one reward more, so it gets no total at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chatgrpo.environments.base import Task
from chatgrpo.rewards.base import Reward
from chatgrpo.rewards.config import PluginReward, RewardConfig
from chatgrpo.rewards.registry import build_reward
from chatgrpo.rollouts.episode import Episode


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """`total` is None when no reward applied or one failed; `failures` maps the failed ones to the reason."""

    total: float | None
    breakdown: Mapping[str, float | None]
    failures: Mapping[str, str] = field(default_factory=dict)


class Rubric:
    """Named rewards with weights. A name is the type (a plug-in's own name), numbered when it comes twice."""

    def __init__(self, configs: Sequence[RewardConfig]) -> None:
        self.rewards: dict[str, Reward] = {}
        self.weights: dict[str, float] = {}
        for config in configs:
            name = self._free_name(config)
            self.rewards[name] = build_reward(config)
            self.weights[name] = config.weight

    def _free_name(self, config: RewardConfig) -> str:
        name = config.name if isinstance(config, PluginReward) else config.type
        count = sum(other == name or other.startswith(f"{name}_") for other in self.rewards)
        return name if name not in self.rewards else f"{name}_{count + 1}"

    def score(self, task: Task, episode: Episode) -> Score:
        """All rewards, one after the other, in this thread; failures are in the score, none is raised."""
        values: dict[str, float | None] = {}
        failures: dict[str, str] = {}
        for name, reward in self.rewards.items():
            try:
                values[name] = checked(reward(task, episode))
            except Exception as error:  # noqa: BLE001 - foreign code: its failure is counted, not ours to judge
                failures[name] = describe(error)
        return self.combine(values, failures)

    def combine(self, values: Mapping[str, float | None], failures: Mapping[str, str]) -> Score:
        """The total of rewards that were computed elsewhere."""
        breakdown = {name: values.get(name) for name in self.rewards}
        applied = [self.weights[name] * value for name, value in breakdown.items() if value is not None]
        total = math.fsum(applied) if applied and not failures else None
        return Score(total=total, breakdown=breakdown, failures=dict(failures))


def checked(value: object) -> float | None:
    """NaN is None; raises ValueError for what is no finite number."""
    if value is None:
        return None
    number = float(value)  # type: ignore[arg-type]
    if math.isinf(number):
        raise ValueError(f"a reward must be finite, got {number}")
    return None if math.isnan(number) else number


def describe(error: BaseException) -> str:
    """One line for logs and counters."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
