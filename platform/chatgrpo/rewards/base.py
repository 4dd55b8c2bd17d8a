"""A reward looks at a finished episode and says a number, or None when it does not apply."""

from __future__ import annotations

from typing import Protocol

from chatgrpo.environments.base import Task
from chatgrpo.rollouts.episode import Episode


class Reward(Protocol):
    """May block and may raise: it runs in a pool with a timeout, and a failure is counted, not fatal."""

    def __call__(self, task: Task, episode: Episode) -> float | None: ...
