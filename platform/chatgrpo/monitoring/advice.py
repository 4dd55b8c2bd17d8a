"""How many chat replicas and training workers are needed ahead, why, and how sure that is. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from chatgrpo.monitoring.advice_config import AdviceConfig
from chatgrpo.monitoring.forecast import Forecast

# From so many points on a forecast is as sure as its band is narrow.
_ENOUGH_POINTS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`replies`: forecast of replies being written at once. `jobs`: of jobs that run or wait for a worker.
    `chat_p95_s`: of the last five minutes, None when nobody chatted. `ahead_s`: how far the forecasts reach."""

    replicas: int
    replies: Forecast
    chat_p95_s: float | None
    workers: int
    jobs: Forecast
    ahead_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """`what`: chat_replicas or training_workers. `confidence` lies between 0 and 1."""

    what: str
    now: int
    wanted: int
    reason: str
    confidence: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def decide(facts: Facts, config: AdviceConfig) -> list[Advice]:
    """One for each. Up follows what is expected, down only what is left when it comes as high as it may."""
    return [_replicas(facts, config), _workers(facts)]


def confidence(forecast: Forecast) -> float:
    """Narrow band, long past: 1. No past: 0."""
    peak = forecast.peak
    width = forecast.high[peak] - forecast.low[peak]
    known = min(1.0, forecast.num_points / _ENOUGH_POINTS)
    return round(known / (1 + width / (2 * max(1.0, forecast.mean[peak]))), 3)


def _replicas(facts: Facts, config: AdviceConfig) -> Advice:
    per_replica, peak = config.replies_a_replica, facts.replies.peak
    expected, at_most = facts.replies.mean[peak], facts.replies.high[peak]
    up, down = (max(1, ceil(replies / per_replica)) for replies in (expected, at_most))
    wanted = up if up > facts.replicas else min(facts.replicas, down)
    reason = (
        f"{expected:.1f} replies at once are expected within {facts.ahead_s / 60:.0f} minutes "
        f"(at most {at_most:.1f}, by {facts.replies.method}); a replica is good for {per_replica:g}"
    )
    is_slow = facts.chat_p95_s is not None and facts.chat_p95_s > config.slow_p95_s
    if is_slow and wanted <= facts.replicas:
        wanted = facts.replicas + 1
        reason = f"95 % of chats take up to {facts.chat_p95_s:.1f} s, more than {config.slow_p95_s:g} s; {reason}"
    bounded = min(config.max_replicas, max(config.min_replicas, wanted))
    if bounded != wanted:
        reason += f"; bounded to {config.min_replicas} to {config.max_replicas}"
    return Advice(
        what="chat_replicas", now=facts.replicas, wanted=bounded, reason=reason, confidence=confidence(facts.replies)
    )


def _workers(facts: Facts) -> Advice:
    peak = facts.jobs.peak
    expected, at_most = facts.jobs.mean[peak], facts.jobs.high[peak]
    up, down = ceil(expected - 1e-9), ceil(at_most - 1e-9)
    wanted = up if up > facts.workers else min(facts.workers, down)
    reason = (
        f"{expected:.1f} jobs that run or wait are expected within {facts.ahead_s / 60:.0f} minutes (at most "
        f"{at_most:.1f}, by {facts.jobs.method})"
    )
    return Advice(
        what="training_workers", now=facts.workers, wanted=wanted, reason=reason, confidence=confidence(facts.jobs)
    )
