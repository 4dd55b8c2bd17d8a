"""Whether a failed call is made again, and after how long.

Waits grow exponentially and are drawn from the whole range down to zero ("full jitter", Brooker 2015), so that callers
who failed together do not come back together. A budget over all requests bounds the extra load: each call saves a
fraction of a repeat and each repeat spends one, so an upstream that fails for everybody is called hardly more often.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from chatgrpo.resilience.config import RetryConfig


class RetryBudget:
    """Repeats that may still be made."""

    def __init__(self, config: RetryConfig) -> None:
        self._config = config
        self.left = config.reserve

    def called(self) -> None:
        """A first call saves a part of a repeat."""
        self.left = min(self._config.reserve, self.left + self._config.budget)

    def spend(self) -> None:
        self.left -= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A call that failed. `attempt` counts from 1; `retry_after_s` is what the upstream asked for."""

    attempt: int
    is_retryable: bool
    has_begun: bool
    retry_after_s: float = 0.0


def delay_before_retry(
    failure: Failure, config: RetryConfig, *, budget_left: float, rng: random.Random
) -> float | None:
    """Seconds to wait, None when the call is not made again: something of its answer was sent already, a repeat cannot
    help, the attempts or the budget are used up, or the upstream asks for more time than a caller should wait."""
    if failure.has_begun or not failure.is_retryable or failure.attempt >= config.max_attempts or budget_left < 1:
        return None
    if failure.retry_after_s > config.max_s:
        return None
    return rng.uniform(0, min(config.max_s, config.base_s * 2 ** (failure.attempt - 1)))
