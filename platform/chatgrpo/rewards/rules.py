"""Rewards that need no model: each takes its configuration and looks at the last reply.

A reward that cannot apply to the task (no answer to compare with) says None; a wrong reply says 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import regex

from chatgrpo.environments.base import Task
from chatgrpo.rewards.config import (
    EnvironmentReward,
    ExactReward,
    FormatReward,
    LengthReward,
    NumericReward,
    RegexReward,
    VerifierReward,
)
from chatgrpo.rewards.extract import extract_answer, to_number
from chatgrpo.rollouts.episode import Episode

# A pattern that backtracks without end is cut off; `regex` lets go of the interpreter lock meanwhile, `re` would not.
REGEX_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Verifier:
    """reasoning-gym's verdict on its own tasks; on others, equality with the answer (numbers by value)."""

    config: VerifierReward

    def __call__(self, task: Task, episode: Episode) -> float | None:
        answer = extract_answer(episode.reply, self.config.extract)
        if task.metadata.get("verifier") == "reasoning_gym":
            from chatgrpo.environments.reasoning_gym import score_answer  # late: its import takes seconds

            return 0.0 if answer is None else score_answer(answer, task.metadata)
        if task.answer is None:
            return None
        return float(answer is not None and _same(answer, task.answer))


@dataclass(frozen=True, slots=True)
class Exact:
    config: ExactReward

    def __call__(self, task: Task, episode: Episode) -> float | None:
        if task.answer is None:
            return None
        answer, wanted = extract_answer(episode.reply, self.config.extract), task.answer.strip()
        if answer is not None and self.config.ignore_case:
            answer, wanted = answer.casefold(), wanted.casefold()
        return float(answer == wanted)


@dataclass(frozen=True, slots=True)
class Numeric:
    config: NumericReward

    def __call__(self, task: Task, episode: Episode) -> float | None:
        wanted = to_number(task.answer)
        if wanted is None:
            return None
        value = to_number(extract_answer(episode.reply, "last_number"))
        return float(value is not None and abs(value - wanted) <= self.config.tolerance)


@dataclass(frozen=True, slots=True)
class Regex:
    """Raises TimeoutError when the pattern needs longer than REGEX_TIMEOUT_S."""

    config: RegexReward

    def __call__(self, task: Task, episode: Episode) -> float | None:
        found = regex.search(self.config.pattern, episode.reply, timeout=REGEX_TIMEOUT_S, concurrent=True)
        return float(found is not None)


@dataclass(frozen=True, slots=True)
class Format:
    """A tag counts when it is there exactly once and begins after the end of the counted tag before it."""

    config: FormatReward

    def __call__(self, task: Task, episode: Episode) -> float | None:
        reply, position, good = episode.reply, 0, 0
        for tag in self.config.tags:
            opening, closing = f"<{tag}>", f"</{tag}>"
            if reply.count(opening) != 1 or reply.count(closing) != 1:
                continue
            start, end = reply.index(opening), reply.index(closing)
            if position <= start < end:
                good, position = good + 1, end + len(closing)
        return good / len(self.config.tags)


@dataclass(frozen=True, slots=True)
class Length:
    config: LengthReward

    def __call__(self, task: Task, episode: Episode) -> float | None:
        target, limit = self.config.target_tokens, self.config.max_tokens
        if episode.num_sampled <= target:
            return 1.0
        if episode.num_sampled >= limit:
            return 0.0
        return (limit - episode.num_sampled) / (limit - target)


@dataclass(frozen=True, slots=True)
class FromEnvironment:
    """None when the environment paid nothing at all, not even 0."""

    config: EnvironmentReward

    def __call__(self, task: Task, episode: Episode) -> float | None:
        paid = episode.info.get("environment_reward")
        return None if paid is None else float(paid)


def _same(answer: str, wanted: str) -> bool:
    if answer.casefold() == wanted.strip().casefold():
        return True
    value, target = to_number(answer), to_number(wanted)
    return value is not None and target is not None and abs(value - target) <= 1e-6
