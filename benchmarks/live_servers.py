"""The servers that benchmarks/live.py measures, each a process:

    python -m benchmarks.live_servers MODE PORT HOME [OTLP]

`live` is the live application behind the platform's gateway, as a replica runs it; its one job changes every second.
`with` is the API with a model that answers at once; `switched` is the same twice in one process, with all telemetry and
with none.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.gateway_servers import LIMITS, Mock
from chatgrpo.api.app import create_app, gateway_of
from chatgrpo.api.live import create_live_app
from chatgrpo.api.operations import Operations
from chatgrpo.api.services import Services
from chatgrpo.clock import SystemClock
from chatgrpo.config import PlatformConfig
from chatgrpo.gateway.config import GatewayConfig
from chatgrpo.monitoring.meters import Meter
from chatgrpo.monitoring.process import observe_process
from chatgrpo.monitoring.reporter import report_forever
from chatgrpo.monitoring.requests import MeasureQueue, MeasureRequests, RequestTotals
from chatgrpo.state.opening import open_platform_conversations
from tests.fake_services import FakeJobs


class ChangingJobs(FakeJobs):
    """A job whose view says when it was looked at: what a reader subtracts from his own clock."""

    async def get(self, job_id: str, *, owner: str | None) -> dict[str, Any]:
        view = await super().get(job_id, owner=owner)
        return view | {"metrics": {"reward": 0.5, "kl": 0.01, "entropy": 1.5, "at": time.time()}}


async def services_of(platform: PlatformConfig) -> Services:
    jobs = ChangingJobs()
    jobs.put("bench")
    return Services(
        config=platform,
        clock=SystemClock(),
        jobs=jobs,
        chat=Mock(),
        conversations=await open_platform_conversations(platform),
    )


def live_app(services: Services) -> FastAPI:
    async def totals() -> RequestTotals:
        return RequestTotals(total_requests=0, error_rate=0, average_response_time_s=0, active_connections=0)

    operations = Operations(services=services, totals=totals, started_s=0.0)
    return create_live_app(services, operations, middleware=gateway_of(services).middleware())


def mounted(app: FastAPI) -> ASGIApp:
    """Where Serve mounts it."""

    async def at_ws(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope if scope["type"] == "lifespan" else {**scope, "root_path": "/ws"}, receive, send)

    return at_ws


class Switched:
    """Two applications in one process, between which `/telemetry?on` and `/telemetry?off` choose: all metrics, their
    reports and a trace of every request, or none of these. In two processes the same code may differ by more than is
    measured here, for where its memory lies."""

    def __init__(self, measured: FastAPI, bare: FastAPI) -> None:
        bare.user_middleware = [m for m in bare.user_middleware if m.cls not in {MeasureRequests, MeasureQueue}]
        self._measured, self._bare = measured, bare
        self._counting = {name: getattr(Meter, name) for name in ("inc", "set", "observe")}
        self._reporting: asyncio.Task[None] | None = None
        self._now: ASGIApp = bare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/telemetry":
            await self._now(scope, receive, send)
            return
        self._switch(is_on=scope["query_string"] == b"on")
        await Response(status_code=204)(scope, receive, send)

    def _switch(self, *, is_on: bool) -> None:
        self._now = self._measured if is_on else self._bare
        for name, count in self._counting.items():
            setattr(Meter, name, count if is_on else lambda *_, **__: None)
        if self._reporting is not None:
            self._reporting.cancel()
        state = self._measured.state
        read = partial(state.operations.rows, state.metrics.registry)
        self._reporting = asyncio.create_task(report_forever(state.services.monitor, read)) if is_on else None


async def switched(platform: PlatformConfig) -> Switched:
    homes = [platform.model_copy(update={"home": platform.home / name}) for name in ("measured", "bare")]
    return Switched(*[create_app(await services_of(home)) for home in homes])


async def live(platform: PlatformConfig) -> ASGIApp:
    return mounted(live_app(await services_of(platform)))


async def whole(platform: PlatformConfig) -> ASGIApp:
    return create_app(await services_of(platform))


APPS = {"live": live, "with": whole, "switched": switched}


async def serve(mode: str, port: int, home: Path, otlp: str | None) -> None:
    platform = PlatformConfig(
        home=home,
        port=port,
        default_model="tiny",
        gateway=GatewayConfig(limits=LIMITS),
        otlp_endpoint=otlp,
        log_level="warning",
    )
    observe_process(platform, mode)
    app: Any = await APPS[mode](platform)
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=port,
        log_level="warning",
        access_log=False,
        backlog=4096,
        lifespan="off" if mode == "switched" else "auto",
    )
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop_policy = uvicorn.Config("x").get_loop_factory()
    asyncio.Runner(loop_factory=uvloop_policy).run(
        serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else None)
    )
