"""The one named actor that schedules jobs, and the client through which the API and the runs talk to it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Any, cast

import ray
from ray._private.services import get_webui_url_from_internal_kv
from ray._private.state import available_resources_per_node
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ulid import ULID

from actors.job_launcher import JobLauncher, stage_code
from actors.names import JOB_SCHEDULER, NAMESPACE
from chatgrpo.audit import AuditTrail
from chatgrpo.clock import SystemClock
from chatgrpo.config import PlatformConfig
from chatgrpo.errors import PlatformError, Unavailable
from chatgrpo.jobs.amounts import Amount, Node
from chatgrpo.jobs.auditing import TransitionAudit
from chatgrpo.jobs.config import JobsConfig
from chatgrpo.jobs.job import JobState
from chatgrpo.jobs.preflight import Preflight
from chatgrpo.jobs.scheduler import Scheduler
from chatgrpo.jobs.store import JobStore
from chatgrpo.monitoring.process import observe_process
from chatgrpo.monitoring.tracing import carrier, trace_operation
from chatgrpo.state.stores import STATE_DB, open_store

logger = logging.getLogger(__name__)

Json = dict[str, Any]
Rows = list[Json]


class RayCluster:
    """The machines as Ray sees them."""

    def nodes(self) -> list[Node]:
        free = available_resources_per_node()  # type: ignore[no-untyped-call]
        return [
            Node(node["NodeID"], _amount(node["Resources"]), _amount(free.get(node["NodeID"], {})))
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"]
        ]

    def ask(self, bundles: Rows) -> None:
        request_resources(bundles=bundles)


def _amount(resources: dict[str, float]) -> Amount:
    return Amount.of(
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        memory_gb=resources.get("memory", 0.0) / 2**30,
    )


class JobScheduler:
    """Scheduler plus a tick loop, in an actor. Everything it must not forget is in `{home}/jobs.db`, so a restarted
    actor goes on where the store says."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it on the actor's event loop
        self, platform: PlatformConfig, config: JobsConfig, code: Path | None = None
    ) -> None:
        home = platform.runs_dir.parent
        observe_process(platform, "jobs")
        launcher = JobLauncher(
            # As the cluster recorded it: where another Ray holds the usual port, a worker guesses that one's.
            address=f"http://{get_webui_url_from_internal_kv()}",  # type: ignore[no-untyped-call]
            runs_dir=platform.runs_dir,
            code=code or stage_code(home),
            env=_run_env(platform),
        )
        store = JobStore(home / "jobs.db")

        async def open_trail() -> AuditTrail:
            return AuditTrail(await open_store(platform.redis_url or home / STATE_DB))

        self._audit = TransitionAudit(store, open_trail)
        self._scheduler = Scheduler(
            store=store,
            launcher=launcher,
            cluster=RayCluster(),
            runs_dir=platform.runs_dir,
            config=config,
            clock=SystemClock(),
            preflight=Preflight(_plugins(platform)),
        )
        self._tick_s = config.tick_s
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop().create_task(self._tick_forever())

    async def _tick_forever(self) -> None:
        while True:
            try:
                await self._scheduler.tick()
            except Exception:
                # One job that cannot be looked at must not stop the queue for good.
                logger.exception("tick failed")
            await self._audited()
            try:
                await asyncio.wait_for(self._wake.wait(), self._tick_s)
            except TimeoutError:
                continue
            self._wake.clear()

    async def _audited(self) -> None:
        try:
            await self._audit.catch_up()
        except Exception as error:  # noqa: BLE001
            # The transitions are stored, and go into the trail when it can be written again.
            logger.warning("transitions wait for the audit trail: %s", error)

    async def pid(self) -> int:
        """The actor's process, for tests that kill it."""
        return os.getpid()

    async def submit(
        self, job_id: str, config: dict[str, Any], owner: str, trace: dict[str, str] | None = None
    ) -> Json:
        with trace_operation("job.submit", component="jobs", parent=trace):
            answer = await self._scheduler.submit(job_id, config, owner=owner)
        self._wake.set()
        return answer

    async def get(self, job_id: str, owner: str | None) -> Json:
        return await self._scheduler.view(job_id, owner=owner)

    async def sweep(self, job_id: str, owner: str | None) -> Json:
        return await self._scheduler.sweep(job_id, owner=owner)

    async def list(self, owner: str | None, state: JobState | None, limit: int, sweeps_only: bool = False) -> Rows:
        return self._scheduler.list(owner=owner, state=state, limit=limit, sweeps_only=sweeps_only)

    async def cancel(self, job_id: str, owner: str | None) -> Json:
        answer = self._scheduler.cancel(job_id, owner=owner)
        self._wake.set()
        return answer

    async def pause(self, job_id: str, owner: str | None) -> Json:
        answer = self._scheduler.pause(job_id, owner=owner)
        self._wake.set()
        return answer

    async def resume(self, job_id: str, owner: str | None) -> Json:
        answer = self._scheduler.resume(job_id, owner=owner)
        self._wake.set()
        return answer

    async def retry(self, job_id: str, owner: str | None) -> Json:
        answer = self._scheduler.retry(job_id, owner=owner)
        self._wake.set()
        return answer

    async def delete(self, job_id: str, owner: str | None) -> Json:
        await self._audited()  # with the job goes its history
        return await self._scheduler.delete(job_id, owner=owner)

    async def log(self, job_id: str, owner: str | None) -> tuple[str, bool]:
        return await self._scheduler.log(job_id, owner=owner)

    async def events(self, job_id: str, owner: str | None) -> Rows:
        return self._scheduler.events(job_id, owner=owner)

    async def checkpoints(self, job_id: str, owner: str | None) -> Rows:
        return await self._scheduler.checkpoints(job_id, owner=owner)

    async def metrics(self, job_id: str, owner: str | None, after_step: int) -> Rows:
        return await self._scheduler.metrics(job_id, owner=owner, after_step=after_step)

    async def trajectories(
        self, job_id: str, owner: str | None, offset: int, limit: int, step: int | None = None
    ) -> Rows:
        return await self._scheduler.trajectories(job_id, owner=owner, offset=offset, limit=limit, step=step)

    async def queue(self) -> Json:
        return self._scheduler.queue()

    async def report(self, job_id: str, attempt: int, report: dict[str, Any]) -> None:
        self._scheduler.report(job_id, attempt, report)


def _plugins(platform: PlatformConfig) -> list[str]:
    return [str(Path(p).resolve()) if p.endswith(".py") else p for p in platform.plugins]


def _run_env(platform: PlatformConfig) -> dict[str, str]:
    traces = {"CHATGRPO_TRACE_SAMPLE_RATIO": str(platform.trace_sample_ratio)}
    if platform.otlp_endpoint is not None:
        traces["CHATGRPO_OTLP_ENDPOINT"] = platform.otlp_endpoint
    # Idle torch threads sleep instead of spinning, or two runs on one machine slow each other down tenfold.
    return traces | {
        "CHATGRPO_HOME": str(platform.runs_dir.parent),
        # Ray Jobs looks for "the" cluster of the machine, which is somebody else's where there are two.
        "CHATGRPO_RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "CHATGRPO_PLUGINS": json.dumps(_plugins(platform)),
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def start_job_scheduler(platform: PlatformConfig, config: JobsConfig | None = None, code: Path | None = None) -> Any:
    """The scheduler's handle; the actor is made on this node unless it runs already. Call it on the head node: the
    store is a file there. Needs a Ray with a dashboard, whose Jobs API starts the runs."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(JobScheduler)
        .options(
            name=JOB_SCHEDULER,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=3,
            num_cpus=0,
            max_concurrency=1000,
            scheduling_strategy=here,
        )
        .remote(platform, config or JobsConfig(), code)
    )


def find_job_scheduler() -> Any:
    """The running scheduler's handle. Raises Unavailable when there is none."""
    try:
        return ray.get_actor(JOB_SCHEDULER, namespace=NAMESPACE)
    except ValueError as error:
        raise Unavailable("the job scheduler does not run; start the platform with `chatgrpo serve`") from error


class JobClient:
    """JobService over the actor. Errors of the platform arrive as themselves."""

    def __init__(self, handle: Any = None) -> None:
        self._handle = handle

    async def submit(self, config: dict[str, Any], *, owner: str) -> Json:
        # The id is made here, so that a call repeated over a restart of the actor is the same job.
        return await self._one("submit", str(ULID()), config, owner, carrier())

    async def get(self, job_id: str, *, owner: str | None) -> Json:
        return await self._one("get", job_id, owner)

    async def sweep(self, job_id: str, *, owner: str | None) -> Json:
        return await self._one("sweep", job_id, owner)

    async def list(
        self, *, owner: str | None, state: JobState | None = None, limit: int = 50, sweeps_only: bool = False
    ) -> Rows:
        return await self._many("list", owner, state, limit, sweeps_only)

    async def cancel(self, job_id: str, *, owner: str | None) -> Json:
        return await self._one("cancel", job_id, owner)

    async def pause(self, job_id: str, *, owner: str | None) -> Json:
        return await self._one("pause", job_id, owner)

    async def resume(self, job_id: str, *, owner: str | None) -> Json:
        return await self._one("resume", job_id, owner)

    async def retry(self, job_id: str, *, owner: str | None) -> Json:
        return await self._one("retry", job_id, owner)

    async def delete(self, job_id: str, *, owner: str | None) -> Json:
        return await self._one("delete", job_id, owner)

    async def logs(self, job_id: str, *, owner: str | None, tail: int = 200) -> str:
        text, _ = await self._ask("log", job_id, owner)
        return "\n".join(str(text).splitlines()[-tail:])

    async def log_chunk(self, job_id: str, *, owner: str | None, offset: int = 0) -> Json:
        text, ended = await self._ask("log", job_id, owner)
        return {"text": text[offset:], "next_offset": max(offset, len(text)), "ended": ended}

    async def events(self, job_id: str, *, owner: str | None) -> Rows:
        return await self._many("events", job_id, owner)

    async def checkpoints(self, job_id: str, *, owner: str | None) -> Rows:
        return await self._many("checkpoints", job_id, owner)

    async def metrics(self, job_id: str, *, owner: str | None, after_step: int = -1) -> Rows:
        return await self._many("metrics", job_id, owner, after_step)

    async def trajectories(
        self, job_id: str, *, owner: str | None, offset: int = 0, limit: int = 50, step: int | None = None
    ) -> Rows:
        return await self._many("trajectories", job_id, owner, offset, limit, step)

    async def queue(self) -> Json:
        return await self._one("queue")

    async def _one(self, method: str, *args: Any) -> Json:
        return cast(Json, await self._ask(method, *args))

    async def _many(self, method: str, *args: Any) -> Rows:
        return cast(Rows, await self._ask(method, *args))

    async def _ask(self, method: str, *args: Any) -> Any:
        handle = self._handle or find_job_scheduler()
        try:
            return await getattr(handle, method).remote(*args)
        except RayTaskError as error:
            if isinstance(error.cause, PlatformError):
                raise error.cause from None
            raise
        except RayActorError as error:
            raise Unavailable("the job scheduler is restarting; try again in a moment") from error
