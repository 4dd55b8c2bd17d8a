"""From a reward's configuration to the reward; plug-ins register theirs by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any

import regex

from chatgrpo.errors import InvalidRequest
from chatgrpo.rewards.base import Reward
from chatgrpo.rewards.config import (
    EnvironmentReward,
    ExactReward,
    FormatReward,
    JudgeReward,
    LengthReward,
    NumericReward,
    PluginReward,
    RegexReward,
    RewardConfig,
    VerifierReward,
)
from chatgrpo.rewards.rules import Exact, Format, FromEnvironment, Length, Numeric, Regex, Verifier

ENTRY_POINT_GROUP = "chatgrpo.rewards"

# (task, episode, **params) -> float | None
RewardFunction = Callable[..., float | None]
_rewards: dict[str, RewardFunction] = {}


def reward(name: str) -> Callable[[RewardFunction], RewardFunction]:
    """Registers `function(task, episode, **params) -> float | None` under `name`."""

    def register(function: RewardFunction) -> RewardFunction:
        _rewards[name] = function
        return function

    return register


def build_reward(config: RewardConfig) -> Reward:
    """Raises InvalidRequest for an unknown name, a pattern that does not compile, parameters that are not taken."""
    match config:
        case VerifierReward():
            return Verifier(config)
        case ExactReward():
            return Exact(config)
        case NumericReward():
            return Numeric(config)
        case RegexReward():
            return _regex(config)
        case FormatReward():
            return Format(config)
        case LengthReward():
            return _length(config)
        case EnvironmentReward():
            return FromEnvironment(config)
        case PluginReward():
            return _plugin(config)
        case JudgeReward():
            from chatgrpo.rewards.judge import Judge  # late: most runs need no HTTP client

            return Judge(config)


def _regex(config: RegexReward) -> Reward:
    try:
        regex.compile(config.pattern)
    except regex.error as error:
        raise InvalidRequest(f"{config.pattern!r} is not a regular expression: {error}", "rewards.pattern") from error
    return Regex(config)


def _length(config: LengthReward) -> Reward:
    if config.max_tokens <= config.target_tokens:
        raise InvalidRequest(
            f"max_tokens {config.max_tokens} must be above target_tokens {config.target_tokens}", "rewards.max_tokens"
        )
    return Length(config)


def _plugin(config: PluginReward) -> Reward:
    function, params = _find(config.name), dict(config.params)
    try:
        inspect.signature(function).bind(None, None, **params)
    except TypeError as error:
        raise InvalidRequest(f"{config.name} does not take {params}: {error}", "rewards.params") from error

    def call(task: Any, episode: Any) -> float | None:
        return function(task, episode, **params)

    return call


def _find(name: str) -> RewardFunction:
    if name in _rewards:
        return _rewards[name]
    known = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name in known:
        function: RewardFunction = known[name].load()
        return _rewards.setdefault(name, function)
    names = sorted({*_rewards, *known})
    near = get_close_matches(name, names, n=3)
    raise InvalidRequest(
        f"no reward is registered as {name!r}; "
        + (f"did you mean {', '.join(near)}? " if near else "")
        + f"known: {', '.join(names) or 'none'}. Name its module under `plugins` in the platform configuration",
        "rewards.name",
    )
