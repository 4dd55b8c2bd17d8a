"""How the platform is: health, metrics, status. Every figure is measured at the time of the request."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry
from starlette.requests import HTTPConnection

from chatgrpo.api.errors import RESPONSES, ErrorBody
from chatgrpo.api.services import Services
from chatgrpo.errors import PlatformError, Unavailable
from chatgrpo.jobs.job import JobState
from chatgrpo.monitoring import meters, samples
from chatgrpo.monitoring.exposition import expose
from chatgrpo.monitoring.history import Row
from chatgrpo.monitoring.merging import rows_of
from chatgrpo.monitoring.reporter import SOURCE
from chatgrpo.monitoring.requests import RequestMetrics, RequestTotals
from chatgrpo.monitoring.samples import Sample
from chatgrpo.monitoring.system import read_system

router = APIRouter(tags=["operations"], responses=RESPONSES)

# A component that takes longer to say how it is counts as down.
PROBE_TIMEOUT_S = 2.0

Facts = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """Reads how the platform is. `totals` are those of the API, wherever this object lives."""

    services: Services
    totals: Callable[[], Awaitable[RequestTotals]]
    started_s: float

    async def health(self) -> Facts:
        components, queue, _ = await self._probe()
        totals = await self.totals()
        return {
            "status": overall(components),
            "timestamp": self._timestamp(),
            "uptime": self._uptime_s(),
            "components": components,
            "resource_utilization": await asyncio.to_thread(read_system, self.services.config.home),
            "active_jobs": _count_active(queue),
            "queue_size": _count(queue, JobState.QUEUED),
            "error_rate": totals.error_rate,
        }

    async def metrics(self) -> Facts:
        components, queue, chat = await self._probe()
        totals = await self.totals()
        return {
            "timestamp": self._timestamp(),
            "components": components,
            "system_metrics": await asyncio.to_thread(read_system, self.services.config.home),
            "training_metrics": {
                "queue_size": _count(queue, JobState.QUEUED),
                "running_jobs": _count_active(queue),
                "completed_jobs": _count(queue, JobState.SUCCEEDED),
                "failed_jobs": _count(queue, JobState.FAILED),
                "cancelled_jobs": _count(queue, JobState.CANCELLED),
                "jobs_by_state": queue.get("states", {}),
            },
            "chat_metrics": chat,
            "api_metrics": {
                "total_requests": totals.total_requests,
                "error_rate": totals.error_rate,
                "average_response_time": totals.average_response_time_s,
                "response_time_percentiles": totals.percentiles_s,
                "cache_hit_rate": totals.cache_hit_rate,
                "active_connections": totals.active_connections,
            },
            "alerts": [
                {"name": "component_down", "severity": "critical", "component": name, "message": state["message"]}
                for name, state in components.items()
                if state["status"] != "healthy"
            ]
            + await self._alerts(),
        }

    async def status(self) -> Facts:
        components, queue, chat = await self._probe()
        config = self.services.config
        return {
            "status": overall(components),
            "version": version("chatgrpo"),
            "python": platform.python_version(),
            "timestamp": self._timestamp(),
            "uptime": self._uptime_s(),
            "components": components,
            "default_model": config.default_model,
            "strategies": sorted(config.decoding_presets),
            "state_store": "redis" if config.redis_url else "sqlite",
            "queue": queue,
            "chat": chat,
        }

    async def samples(self) -> list[Sample]:
        """What all parts report now. One that does not answer is missing, and `chatgrpo_component_up` says so."""
        (components, queue, chat), running, ended, system = await asyncio.gather(
            self._probe(),
            self._jobs(JobState.RUNNING),
            self._jobs(JobState.SUCCEEDED),
            asyncio.to_thread(read_system, self.services.config.home),
        )
        return [
            *samples.of_components(components),
            *samples.of_queue(queue),
            *samples.of_chat(chat),
            *samples.of_machine(system),
            *samples.of_training(running),
            *samples.of_models(ended),
        ]

    async def rows(self, requests: CollectorRegistry) -> list[Row]:
        """All of that and what this process counts, for the monitor."""
        reported = [sample.row for sample in await self.samples()]
        return [*rows_of(requests), *rows_of(meters.PROCESS.registry), *reported]

    async def merged(self, own: Sequence[Row]) -> Sequence[Row]:
        """The figures of all processes, this one's the newest; `own` when the monitor does not answer."""

        async def asked() -> Sequence[Row]:
            await self.services.monitor.report(SOURCE, own)
            return await self.services.monitor.rows()

        _, found = await self._ask(asked())
        return found if found is not None else own

    async def _alerts(self) -> list[Facts]:
        """Firing alerts about the platform as a whole: components are asked directly, jobs have owners."""
        _, alerts = await self._ask(self.services.monitor.alerts())
        whole = [alert for alert in alerts or [] if not {"component", "job_id"} & set(alert["labels"])]
        return [alert for alert in whole if alert["state"] == "firing"]

    async def _jobs(self, state: JobState) -> list[Facts]:
        _, jobs = await self._ask(self.services.jobs.list(owner=None, state=state, limit=samples.MAX_JOBS))
        return jobs or []

    async def _probe(self) -> tuple[dict[str, Facts], Facts, Facts]:
        (jobs, queue), (chat, chat_status), (store, _) = await asyncio.gather(
            self._ask(self.services.jobs.queue()),
            self._ask(self.services.chat.status()),
            self._ask(self.services.conversations.ping()),
        )
        return {"jobs": jobs, "chat": chat, "conversations": store}, queue or {}, chat_status or {}

    async def _ask(self, question: Awaitable[T]) -> tuple[Facts, T | None]:
        started = self.services.clock.monotonic()
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                answer = await question
        except TimeoutError:
            return {"status": "unhealthy", "message": f"no answer within {PROBE_TIMEOUT_S:g} s"}, None
        except PlatformError as error:
            return {"status": "unhealthy", "message": error.message}, None
        return {"status": "healthy", "latency_ms": 1000 * (self.services.clock.monotonic() - started)}, answer

    def _timestamp(self) -> str:
        return datetime.fromtimestamp(self.services.clock.now(), UTC).isoformat()

    def _uptime_s(self) -> float:
        return self.services.clock.monotonic() - self.started_s


def overall(components: dict[str, Facts]) -> str:
    """`degraded` as long as something still works."""
    num_healthy = sum(c["status"] == "healthy" for c in components.values())
    return "healthy" if num_healthy == len(components) else "degraded" if num_healthy else "unhealthy"


async def operations_of(connection: HTTPConnection) -> Operations:
    operations = connection.app.state.operations
    assert isinstance(operations, Operations)
    return operations


OperationsOf = Annotated[Operations, Depends(operations_of)]


@router.get("/api/v2/health", responses={503: {"description": "Nothing behind the API answers.", "model": ErrorBody}})
async def health(operations: OperationsOf) -> Response:
    """Components, machine, queue. Status 503 when no component answers."""
    facts = await operations.health()
    if facts["status"] == "unhealthy":
        messages = "; ".join(f"{name}: {c['message']}" for name, c in facts["components"].items())
        raise Unavailable(f"no component answers ({messages})", retry_after_s=5)
    return JSONResponse(facts)


@router.get("/api/v2/metrics")
async def metrics(operations: OperationsOf) -> Facts:
    """The same figures as `/metrics`, and the machine's, as JSON. `cache_hit_rate` is null before the first
    GET whose answer may be kept."""
    return await operations.metrics()


@router.get("/api/v2/system/status")
async def system_status(operations: OperationsOf) -> Facts:
    """Version, components, queue and loaded models."""
    return await operations.status()


@router.get("/metrics", response_class=PlainTextResponse)
async def prometheus(operations: OperationsOf, connection: HTTPConnection) -> Response:
    """Prometheus text, or OpenMetrics for who asks for it. The figures of all processes, merged; of this replica alone
    while the metrics hub does not answer."""
    requests: RequestMetrics = connection.app.state.metrics
    registries = [requests.registry, meters.PROCESS.registry]
    rows = await operations.merged(await operations.rows(requests.registry))
    text, content_type = expose(rows, registries, connection.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": content_type})


def _count(queue: Facts, state: JobState) -> int:
    return int(queue.get("states", {}).get(state, 0))


def _count_active(queue: Facts) -> int:
    return sum(_count(queue, state) for state in JobState if state.is_active)
