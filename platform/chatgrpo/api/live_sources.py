"""What the live topics tell: `metrics`, `alerts`, `job:ID`. A source looks at the platform and says what is new."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from chatgrpo.api.operations import Operations
from chatgrpo.api.services import Services
from chatgrpo.errors import InvalidRequest, NotFound
from chatgrpo.jobs.job import JobState

JOB = "job:"
Json = dict[str, Any]

# Of a job's view: what has routes of its own, or does not change.
_LEFT_OUT = {"config", "reward_curve", "evaluations"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """News on a channel: a topic, or `topic@tenant` where it is one tenant's."""

    channel: str
    data: Json


class Source(Protocol):
    @property
    def interval_s(self) -> float:
        """Until the next look."""
        ...

    async def look(self) -> list[Change]:
        """What is new since the look before; nothing at the first one."""
        ...

    def snapshot(self, owner: str) -> Json:
        """How it is, for somebody who begins to read."""
        ...


def channels_of(topic: str, owner: str) -> tuple[str, ...]:
    """Which channels of a topic a tenant reads."""
    return (topic, f"{topic}@{owner}")


async def admit(topic: str, services: Services, *, owner: str) -> None:
    """Raises InvalidRequest for a topic that does not exist, NotFound for another tenant's job."""
    if topic.startswith(JOB):
        await services.jobs.get(topic.removeprefix(JOB), owner=owner)
    elif topic not in {"metrics", "alerts"}:
        raise InvalidRequest(f"there is no topic {topic!r}; there are metrics, alerts and job:ID", "topics")


def source_of(topic: str, services: Services, operations: Operations) -> Source:
    if topic.startswith(JOB):
        return JobSource(topic, services)
    return MetricsSource(operations) if topic == "metrics" else AlertsSource(services)


class MetricsSource:
    """The same as GET /api/v2/metrics, again and again."""

    interval_s = 2.0

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._now: Json = {}

    async def look(self) -> list[Change]:
        is_first, self._now = not self._now, await self._operations.metrics()
        return [] if is_first else [Change(channel="metrics", data=self._now)]

    def snapshot(self, owner: str) -> Json:
        return self._now


class AlertsSource:
    """Every alert when it appears, changes its state or is silenced, and once more, `resolved`, when it is over."""

    interval_s = 1.0

    def __init__(self, services: Services) -> None:
        self._services = services
        self._known: dict[str, tuple[str, Json]] | None = None

    async def look(self) -> list[Change]:
        found = {_key(alert): (await self._channel(alert), alert) for alert in await self._services.monitor.alerts()}
        before, self._known = self._known, found
        if before is None:
            return []
        changed = [
            Change(channel=channel, data={"alert": alert})
            for key, (channel, alert) in found.items()
            if key not in before or _looks(before[key][1]) != _looks(alert)
        ]
        over = [
            Change(channel=channel, data={"alert": alert | {"state": "resolved"}})
            for key, (channel, alert) in before.items()
            if key not in found
        ]
        return changed + over

    def snapshot(self, owner: str) -> Json:
        mine = channels_of("alerts", owner)
        return {"alerts": [alert for channel, alert in (self._known or {}).values() if channel in mine]}

    async def _channel(self, alert: Json) -> str:
        """Alerts about a job are its owner's."""
        job_id = alert["labels"].get("job_id")
        known = (self._known or {}).get(_key(alert))
        if job_id is None or known is not None:
            return known[0] if known else "alerts"
        try:
            job = await self._services.jobs.get(job_id, owner=None)
        except NotFound:
            return "alerts@"  # the job is gone, and with it who it belonged to
        return f"alerts@{job['owner']}"


def _key(alert: Mapping[str, Any]) -> str:
    return f"{alert['name']} {sorted(alert['labels'].items())}"


def _looks(alert: Mapping[str, Any]) -> tuple[Any, ...]:
    return alert["state"], alert["silenced"]


class JobSource:
    """A job's view whenever it changes, with the figures of the steps that were taken meanwhile."""

    def __init__(self, topic: str, services: Services) -> None:
        self._topic, self._services = topic, services
        self._job_id = topic.removeprefix(JOB)
        self._view: Json | None = None
        self._last_step = -1
        self._is_over = False

    @property
    def interval_s(self) -> float:
        # What has ended changes only when somebody retries it.
        return 5.0 if self._is_over else 1.0

    async def look(self) -> list[Change]:
        try:
            view = await self._services.jobs.get(self._job_id, owner=None)
        except NotFound:
            return self._deleted()
        view = {name: value for name, value in view.items() if name not in _LEFT_OUT}
        self._is_over = JobState(view["status"]).is_terminal
        is_first, is_same = self._view is None, view == self._view
        self._view = view
        if is_same:
            return []
        steps = await self._services.jobs.metrics(self._job_id, owner=None, after_step=self._last_step)
        self._last_step = max([self._last_step, *(int(line["step"]) for line in steps)])
        return [] if is_first else [Change(channel=self._topic, data={"job": view, "steps": steps})]

    def snapshot(self, owner: str) -> Json:
        """Without steps: GET /api/v2/jobs/{id}/metrics has all of them."""
        return {"job": self._view, "steps": []}

    def _deleted(self) -> list[Change]:
        if self._is_over and self._view is None:
            return []
        self._is_over, self._view = True, None
        return [Change(channel=self._topic, data={"job": None, "steps": []})]
