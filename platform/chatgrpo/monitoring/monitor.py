"""Looks after alerts: takes reports of processes, looks at the rules, tells the handlers what changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from ulid import ULID

from chatgrpo.clock import Clock
from chatgrpo.errors import NotFound
from chatgrpo.monitoring.advice_config import AdviceConfig
from chatgrpo.monitoring.advisor import Advisor
from chatgrpo.monitoring.alert_config import Absence, AlertsConfig, All, BurnRate, Condition
from chatgrpo.monitoring.alerts import Alert, Silence, look
from chatgrpo.monitoring.analytics import WINDOWS_S
from chatgrpo.monitoring.history import STALE_S, History, Labels, Row
from chatgrpo.monitoring.merging import Merged
from chatgrpo.monitoring.silence_file import SilenceFile

logger = logging.getLogger(__name__)

# A receiver that is slow for very long gets the newest.
MAX_UNTOLD = 1000

Json = dict[str, Any]
Notify = Callable[[Sequence[Alert]], Awaitable[None]]


class MonitorService(Protocol):
    """What the API asks of the monitor, wherever it lives."""

    async def report(self, source: str, rows: Sequence[Row]) -> None:
        """The figures of one process now. Raises Unavailable when nobody takes them."""
        ...

    async def rows(self) -> list[Row]:
        """The figures of all processes that reported lately, merged."""
        ...

    async def advice(self) -> Json:
        """Figures over windows, what they cost, what will be needed and why."""
        ...

    async def alerts(self) -> list[Json]:
        """Firing and pending alerts, the gravest first."""
        ...

    async def silence(
        self, *, rule: str | None, labels: Mapping[str, str], seconds: float, by: str, reason: str
    ) -> Json:
        """No notification about such alerts for a time; they are still shown."""
        ...

    async def silences(self) -> list[Json]: ...

    async def unsilence(self, silence_id: str) -> None:
        """Raises NotFound."""
        ...


class Monitor:
    """MonitorService in this process. With `tick_on_report` every report is followed by a look at the rules; else
    the owner calls `tick`, which also notices that nobody reports."""

    def __init__(
        self,
        config: AlertsConfig,
        *,
        clock: Clock,
        notify: Notify | None = None,
        tick_on_report: bool = True,
        silence_file: SilenceFile | None = None,
        advisor: Advisor | None = None,
    ) -> None:
        self._config, self._clock, self._notify = config, clock, notify
        self._tick_on_report = tick_on_report
        self._merged = Merged(from_zero=tick_on_report)
        windows = [reach(rule.when) for rule in config.rules]
        self._history = History(keep_s=max([STALE_S, *WINDOWS_S.values(), *windows]) * 1.1)
        self.advisor = advisor or Advisor(AdviceConfig())
        self._active: dict[tuple[str, Labels], Alert] = {}
        self._untold: list[Alert] = []
        self._telling: asyncio.Task[None] | None = None
        self._silence_file = silence_file
        self._silences: dict[str, Silence] = {s.id: s for s in (silence_file.load() if silence_file else ())}

    async def report(self, source: str, rows: Sequence[Row]) -> None:
        self._merged.report(source, rows, self._clock.now())
        if self._tick_on_report:
            await self.tick()

    async def rows(self) -> list[Row]:
        return self._merged.rows(self._clock.now())

    async def tick(self) -> list[Row]:
        """One look at all rules; changes that no silence covers go to the handlers. Returns the figures it saw."""
        now = self._clock.now()
        rows = self._merged.rows(now)
        self._history.add(now, rows)
        looked = look(self._config.rules, self._history, self._active, now)
        self._active = looked.active
        self._silences = {i: s for i, s in self._silences.items() if s.until > now}
        told = [alert for alert in looked.changed if not self._is_silenced(alert)]
        for alert in looked.changed:
            logger.info(
                "alert=%s state=%s labels=%s value=%g", alert.rule.name, alert.state, dict(alert.labels), alert.value
            )
        if self._notify is not None and told:
            self._untold = [*self._untold, *told][-MAX_UNTOLD:]
            if self._telling is None or self._telling.done():
                self._telling = asyncio.create_task(self._tell(self._notify))
        await self.advisor.observe(self._history, now)
        return rows

    async def _tell(self, notify: Notify) -> None:
        """Beside the looks at the rules, which must not wait for a receiver that is slow, and in their order."""
        while self._untold:
            now, self._untold = self._untold, []
            try:
                await notify(now)
            except Exception:
                # The next ones must be told all the same.
                logger.exception("%d alerts were not told", len(now))

    async def told(self) -> None:
        """Waits until everybody knows of what changed so far."""
        if self._telling is not None:
            await self._telling

    async def advice(self) -> Json:
        return self.advisor.view(self._history, self._clock.now())

    async def alerts(self) -> list[Json]:
        grave = {"critical": 0, "warning": 1, "info": 2}
        found = sorted(self._active.values(), key=lambda a: (a.fired_at is None, grave[a.rule.severity], a.since))
        return [alert.to_json() | {"silenced": self._is_silenced(alert)} for alert in found]

    async def silence(
        self, *, rule: str | None, labels: Mapping[str, str], seconds: float, by: str, reason: str
    ) -> Json:
        if rule is not None and rule not in {r.name for r in self._config.rules}:
            raise NotFound(f"there is no alert rule {rule}")
        until = self._clock.now() + seconds
        made = Silence(id=str(ULID()), rule=rule, labels=dict(labels), until=until, by=by, reason=reason)
        self._silences[made.id] = made
        await self._keep_silences()
        return asdict(made)

    async def silences(self) -> list[Json]:
        now = self._clock.now()
        return [asdict(silence) for silence in self._silences.values() if silence.until > now]

    async def unsilence(self, silence_id: str) -> None:
        if self._silences.pop(silence_id, None) is None:
            raise NotFound(f"there is no silence {silence_id}")
        await self._keep_silences()

    async def _keep_silences(self) -> None:
        if self._silence_file is not None:
            await asyncio.to_thread(self._silence_file.save, list(self._silences.values()))

    def _is_silenced(self, alert: Alert) -> bool:
        now = self._clock.now()
        return any(silence.covers(alert, now) for silence in self._silences.values())


def reach(condition: Condition) -> float:
    """Seconds of history that a condition looks at."""
    if isinstance(condition, All):
        return max(map(reach, condition.conditions))
    if isinstance(condition, BurnRate):
        return max(condition.long_s, condition.short_s)
    # Absence needs the newest point only, but for as long as it may take to notice.
    return condition.over_s * (2 if isinstance(condition, Absence) else 1)
