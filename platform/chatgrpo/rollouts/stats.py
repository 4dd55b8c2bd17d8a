"""What a collection cost and lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class RolloutStats:
    """Counts and seconds of one collection; two of them add up (rounds of one step, ranks).

    `wait_s`: the engine stood still for environments or rewards. `failures`: reasons with their counts."""

    num_groups: int = 0
    num_episodes: int = 0
    num_turns: int = 0
    num_truncated: int = 0
    dropped_groups: int = 0
    dropped_episodes: int = 0
    retried_episodes: int = 0
    environment_failures: int = 0
    environment_timeouts: int = 0
    reward_failures: int = 0
    prompt_tokens: int = 0
    sampled_tokens: int = 0
    generation_s: float = 0.0
    wait_s: float = 0.0
    seconds: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: RolloutStats) -> RolloutStats:
        return RolloutStats(**{name: getattr(self, name) + getattr(other, name) for name in self.__slots__})

    def metrics(self) -> dict[str, float]:
        """Flat, for reports: every count, and the rates that people look at."""
        counts = {f"rollout/{name}": float(getattr(self, name)) for name in self.__slots__ if name != "failures"}
        return {
            **counts,
            "rollout/tokens_per_s": self.sampled_tokens / self.generation_s if self.generation_s else 0.0,
            "rollout/mean_completion_tokens": self.sampled_tokens / max(1, self.num_episodes),
            "rollout/truncated_share": self.num_truncated / max(1, self.num_episodes),
        }
