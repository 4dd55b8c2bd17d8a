"""Watches the load, minute by minute, and says what it will need."""

from __future__ import annotations

import asyncio
from typing import Any

from chatgrpo.monitoring import analytics, catalog
from chatgrpo.monitoring.advice import Advice, Facts, decide
from chatgrpo.monitoring.advice_config import AdviceConfig
from chatgrpo.monitoring.forecast import Forecast, forecast
from chatgrpo.monitoring.history import History
from chatgrpo.monitoring.load_log import LoadLog, LoadPoint, resampled

_DAY_S, _HOUR_S = 86_400.0, 3600.0
# With less past than this there is no day to compare with, and minutes tell more.
_LONG_S = 2 * _DAY_S


class Advisor:
    """`observe` after every look at the rules; it takes a point a minute and a forecast every fifth."""

    def __init__(self, config: AdviceConfig, log: LoadLog | None = None) -> None:
        self.config, self._log = config, log or LoadLog()
        self.advice: list[Advice] = []
        self._replies: Forecast | None = None
        self._decided_at: float | None = None

    async def observe(self, history: History, now: float) -> None:
        if not self._log.is_due(now):
            return
        minute = analytics.Window(history, now, 60.0)
        replies = minute.mean(catalog.CHAT_REQUESTS.name) or 0.0
        self._log.add(LoadPoint(at=now, replies=replies, jobs=_jobs(history, now)))
        if self._decided_at is None or now - self._decided_at >= 300.0:
            self._decided_at = now
            self.advice, self._replies = await self._decide(history, now)

    def view(self, history: History, now: float) -> dict[str, Any]:
        """What GET /api/v2/advice shows of it."""
        windows = analytics.summary(history, now)
        replicas = _replicas(history, now)
        per_1000 = analytics.chat_cost(windows["1h"]["chats_per_s"], replicas, self.config)
        return {
            "advice": [advice.to_json() for advice in self.advice],
            "applied": self.config.apply,
            "windows": windows,
            "costs": {"currency": self.config.currency, "per_1000_chats": per_1000},
            "forecast": None if self._replies is None else _shown(self._replies, self.config.ahead_s),
        }

    async def _decide(self, history: History, now: float) -> tuple[list[Advice], Forecast]:
        window = analytics.Window(history, now, 300.0)
        chat_p95_s = window.quantile(catalog.HTTP_SECONDS.name, 0.95, analytics.is_chat)
        replicas, workers = _replicas(history, now), round(_last(history, "running", now))
        replies, jobs = await self._forecast("replies", now), await self._forecast("jobs", now)
        facts = Facts(
            replicas=replicas,
            replies=replies,
            chat_p95_s=chat_p95_s,
            workers=workers,
            jobs=jobs,
            ahead_s=self.config.ahead_s,
        )
        return decide(facts, self.config), replies

    async def _forecast(self, figure: str, now: float) -> Forecast:
        points = self._log.points
        is_long = bool(points) and now - points[0].at >= _LONG_S
        step_s, back_s = (900.0, 7 * _DAY_S) if is_long else (60.0, 3 * _HOUR_S)
        values = resampled(points, figure, step_s=step_s, since=now - back_s, until=now)
        horizon = max(1, round(self.config.ahead_s / step_s))
        periods = [round(_DAY_S / step_s)] if is_long else [60]
        # Away from the loop: fitting takes a moment, and the first time loads a library.
        return await asyncio.to_thread(forecast, values, horizon=horizon, periods=periods)


def _jobs(history: History, now: float) -> float:
    return sum(_last(history, state, now) for state in ("queued", "starting", "running", "checkpointing"))


def _last(history: History, state: str, now: float) -> float:
    found = history.window(catalog.JOBS.name, {"state": state}, now - 60.0, now)
    return max((points[-1][1] for points in found.values()), default=0.0)


def _replicas(history: History, now: float) -> int:
    found = history.window(catalog.MODEL_REPLICAS.name, {}, now - 60.0, now)
    # Without a hub there is one process, and the model is in it or behind it.
    return max(1, round(max((points[-1][1] for points in found.values()), default=1.0)))


def _shown(found: Forecast, ahead_s: float) -> dict[str, Any]:
    step_s = ahead_s / len(found.mean)
    points = [
        {"in_s": round((i + 1) * step_s), "mean": m, "low": low, "high": high}
        for i, (m, low, high) in enumerate(zip(found.mean, found.low, found.high, strict=True))
    ]
    return {"what": "replies at once", "method": found.method, "points": points}
