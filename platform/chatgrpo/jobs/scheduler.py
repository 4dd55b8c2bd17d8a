"""The job scheduler without Ray: what callers ask, and the tick that looks at the world and carries decisions out.

All state is in the store. Methods that touch the store are short and never wait, so on one event loop they cannot
interleave; whatever waits (Ray, files) happens before or after and is safe to repeat.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from chatgrpo.clock import Clock
from chatgrpo.errors import Conflict, NotFound, RateLimited
from chatgrpo.jobs import autoscaling, checkpoints, views
from chatgrpo.jobs.admission import admit, check_quotas, check_room
from chatgrpo.jobs.amounts import Node
from chatgrpo.jobs.autoscaling import Wish
from chatgrpo.jobs.config import JobsConfig
from chatgrpo.jobs.controller import AskStop, Decision, Facts, Kill, Launch, Run, step
from chatgrpo.jobs.job import Event, Job, JobState, Progress, StopReason, created, move
from chatgrpo.jobs.run_folder import RunFolder
from chatgrpo.jobs.scheduling.explain import Wait
from chatgrpo.jobs.scheduling.pools import Usage
from chatgrpo.jobs.seed_request import validate
from chatgrpo.jobs.store import JobStore
from chatgrpo.jobs.sweeps import job as sweeps
from chatgrpo.jobs.sweeps.config import SweepConfig
from chatgrpo.jobs.sweeps.space import check_space
from chatgrpo.jobs.sweeps.table import Table
from chatgrpo.monitoring.tracing import carrier, trace_operation
from chatgrpo.training.config import TrainConfig

logger = logging.getLogger(__name__)

Json = dict[str, Any]
Rows = list[Json]
Events = list[Event]

USAGE_SAVE_S = 30.0


class Launcher(Protocol):
    """Runs as processes. Every method may block, and may be repeated with the same arguments."""

    def launch(self, job: Job) -> None:
        """Starts the run `job.submission_id`, unless it was started before."""
        ...

    def kill(self, submission_id: str) -> None: ...

    def runs(self) -> dict[str, Run]:
        """Every run of ours, by submission id. Of an ended one also its result and the end of its log."""
        ...

    def log(self, submission_id: str) -> str:
        """What the run has printed so far; empty if nothing is known of it."""
        ...


class Cluster(Protocol):
    def nodes(self) -> list[Node]:
        """The machines that are alive. May block."""
        ...

    def ask(self, bundles: Rows) -> None:
        """Asks the autoscaler for a cluster that holds all of these at once. May block."""
        ...


class Scheduler:
    """See the methods of JobService for what callers may ask; `owner=None` sees every job."""

    def __init__(
        self,
        *,
        store: JobStore,
        launcher: Launcher,
        cluster: Cluster,
        runs_dir: Path,
        config: JobsConfig,
        clock: Clock,
        preflight: Callable[[TrainConfig], None] | None = None,
    ) -> None:
        self._store = store
        self._launcher = launcher
        self._cluster = cluster
        self._runs_dir = runs_dir
        self._config = config
        self._clock = clock
        self._preflight = preflight
        self._waits: dict[str, Wait] = {}
        self._wish = Wish()
        self._usage = store.usage()
        self._usage_saved_at = clock.now()

    @property
    def _counts_hours(self) -> bool:
        return any(q.cpu_hours is not None or q.gpu_hours is not None for q in self._config.quotas)

    def _keep_usage(self, usage: Usage, now: float) -> None:
        """Past use only steers fairness: losing half a minute of it in a crash is no harm."""
        self._usage = usage
        if now - self._usage_saved_at >= USAGE_SAVE_S:
            self._store.save_usage(usage)
            self._usage_saved_at = now

    async def tick(self) -> None:
        """One look at the world: gather facts, decide, store, carry out."""
        runs, nodes = await asyncio.gather(
            asyncio.to_thread(self._launcher.runs), asyncio.to_thread(self._cluster.nodes)
        )
        jobs = self._store.unfinished()
        now = self._clock.now()
        window_s = self._config.hours_window_days * 86_400.0
        facts = Facts(
            now=now,
            jobs=jobs,
            runs=runs,
            nodes=nodes,
            config=self._config,
            usage=self._usage,
            hours=self._store.used_since(now - window_s) if self._counts_hours else {},
        )
        decided = step(facts)
        self._record([d for d in decided.decisions if isinstance(d, Event)])
        self._waits = decided.waits
        self._keep_usage(decided.usage, now)
        await self._autoscale(now)
        for decision in decided.decisions:
            try:
                await self._carry_out(decision)
            except (OSError, RuntimeError, ValueError):
                # Ray did not answer or refused this one: the others do not wait for it, and the next tick tries again.
                logger.exception("could not carry out %s", decision)

    async def _carry_out(self, decision: Decision) -> None:
        match decision:
            case Launch(job):
                with trace_operation("job.launch", component="jobs", parent=job.carrier):
                    await asyncio.to_thread(self._launcher.launch, job)
            case AskStop(job):
                await asyncio.to_thread(self._folder(job).ask_stop, str(job.stop_reason))
            case Kill(submission_id, cause):
                logger.info("kill run=%s cause=%s", submission_id, cause)
                await asyncio.to_thread(self._launcher.kill, submission_id)

    async def _autoscale(self, now: float) -> None:
        """Tells the autoscaler, or in a dry run the log, what the queue needs, whenever that changes."""
        config = self._config.autoscaling
        if config.mode == "off":
            return
        wish = autoscaling.decide(self._store.unfinished(), config, last=self._wish, now=now)
        if wish.workers != self._wish.workers:
            logger.info("autoscaling mode=%s wants=%s", config.mode, wish.size)
            if config.mode == "on":
                await asyncio.to_thread(self._cluster.ask, wish.bundles())
        self._wish = wish

    async def submit(self, job_id: str, config: Mapping[str, Any], *, owner: str) -> Json:
        """Queues a job under an id that the caller made; the same id again is the same job. `config`: a TrainConfig as
        JSON, or {"sweep": a SweepConfig}."""
        job = self._store.find(job_id)
        if job is None:
            sweep = validate(SweepConfig, config["sweep"]) if sweeps.is_sweep(config) else None
            if sweep:
                check_space(sweep)
            train = sweep.train if sweep else validate(TrainConfig, config)
            nodes = await asyncio.to_thread(self._cluster.nodes)
            admitted = await asyncio.to_thread(
                admit,
                train,
                owner=owner,
                nodes=nodes,
                jobs_config=self._config,
                runs_dir=self._runs_dir,
                preflight=self._preflight,
            )
            if sweep:
                admitted = sweeps.job_config(sweep, admitted)
                check_room(admitted, nodes, self._config)
                check_quotas(admitted, owner, self._config.quotas)
            job = self._store.find(job_id) or self._queue(job_id, admitted, owner)
        running = [j for j in self._store.unfinished() if j.state is JobState.RUNNING and j.progress.eta_s is not None]
        first_end_s = min((j.progress.eta_s or 0.0 for j in running), default=None)
        return views.submitted(job, position=len(self._waits), running_eta_s=first_end_s)

    def _queue(self, job_id: str, config: dict[str, Any], owner: str) -> Job:
        queued = self._store.list(owner=owner, state=JobState.QUEUED, limit=self._config.max_queued_per_owner)
        if len(queued) >= self._config.max_queued_per_owner:
            raise RateLimited(
                f"{len(queued)} jobs of {owner!r} are queued, the most allowed; wait or cancel some", 60.0
            )
        now = self._clock.now()
        trace = carrier().get("traceparent")
        job = Job(id=job_id, owner=owner, config=config, submitted_at=now, state_since=now, trace=trace)
        self._record([created(job)])
        return job

    def get(self, job_id: str, *, owner: str | None) -> tuple[Job, Wait | None]:
        job = self._store.get(job_id, owner=owner)
        return job, self._waits.get(job_id)

    async def view(self, job_id: str, *, owner: str | None) -> Json:
        job, wait = self.get(job_id, owner=owner)
        curve = await asyncio.to_thread(self._folder(job).read_metrics)
        return views.detail(job, wait, curve=curve)

    async def sweep(self, job_id: str, *, owner: str | None) -> Json:
        """A sweep with its trials. Raises NotFound for a job that is none."""
        job, wait = self.get(job_id, owner=owner)
        if not sweeps.is_sweep(job.config):
            raise NotFound(f"job {job_id} is no sweep; GET /api/v2/jobs/{job_id} shows it")
        table = await asyncio.to_thread(Table.load, sweeps.table_path(self._folder(job)))
        return views.summary(job, wait) | sweeps.detail(job, table)

    def list(
        self, *, owner: str | None, state: JobState | None = None, limit: int = 50, sweeps_only: bool = False
    ) -> Rows:
        jobs = self._store.list(owner=owner, state=state, limit=limit, sweeps_only=sweeps_only)
        return [views.summary(job, self._waits.get(job.id)) for job in jobs]

    def cancel(self, job_id: str, *, owner: str | None) -> Json:
        """Final at once; the run, if there is one, is killed at the next tick because no job claims it any more."""
        job = self._store.get(job_id, owner=owner)
        if job.state is not JobState.CANCELLED:
            job = self._move(job, JobState.CANCELLED, "cancelled by the user")
        return views.summary(job) | {"cancelled_at": views.iso(job.ended_at)}

    def pause(self, job_id: str, *, owner: str | None) -> Json:
        """A queued job is held back; a running one saves a checkpoint first."""
        job = self._store.get(job_id, owner=owner)
        if job.state in {JobState.PAUSED, JobState.CHECKPOINTING} and job.stop_reason in {None, StopReason.PAUSE}:
            return views.summary(job)
        if job.state is JobState.CHECKPOINTING:
            job = replace(job, stop_reason=StopReason.PAUSE)
            self._store.save(job)
            return views.summary(job)
        if job.state.is_active:
            stop = {"stop_reason": StopReason.PAUSE}
            return views.summary(self._move(job, JobState.CHECKPOINTING, "paused by the user", **stop))
        return views.summary(self._move(job, JobState.PAUSED, "paused by the user"))

    def resume(self, job_id: str, *, owner: str | None) -> Json:
        job = self._store.get(job_id, owner=owner)
        if job.state is not JobState.PAUSED:
            raise Conflict(f"job {job_id} is {job.state}, not paused; only a paused job can be resumed")
        return views.summary(self._move(job, JobState.QUEUED, "resumed by the user"))

    def retry(self, job_id: str, *, owner: str | None) -> Json:
        """A failed or cancelled job again, from its last checkpoint, with fresh retry budgets."""
        job = self._store.get(job_id, owner=owner)
        if job.state not in {JobState.FAILED, JobState.CANCELLED}:
            raise Conflict(f"job {job_id} is {job.state}; only a failed or cancelled job can be retried")
        return views.summary(self._move(job, JobState.QUEUED, "retried by the user", retries={}, not_before=0.0))

    async def delete(self, job_id: str, *, owner: str | None) -> Json:
        """Forgets an ended job with all of its files, its exported model too."""
        job = self._store.get(job_id, owner=owner)
        if not job.state.is_terminal:
            raise Conflict(f"job {job_id} is {job.state}; cancel it before deleting it")
        self._store.delete(job_id)
        for folder in [self._folder(job).path, *self._trial_folders(job)]:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        return {"job_id": job_id, "status": "deleted"}

    def events(self, job_id: str, *, owner: str | None) -> Rows:
        self._store.get(job_id, owner=owner)
        return [event | {"at": views.iso(event["at"])} for event in self._store.events(job_id)]

    async def metrics(self, job_id: str, *, owner: str | None, after_step: int = -1) -> Rows:
        job = self._store.get(job_id, owner=owner)
        lines = await asyncio.to_thread(self._folder(job).read_metrics)
        return [line for line in lines if line.get("step", -1) > after_step]

    async def trajectories(
        self, job_id: str, *, owner: str | None, offset: int, limit: int, step: int | None = None
    ) -> Rows:
        job = self._store.get(job_id, owner=owner)
        return await asyncio.to_thread(self._folder(job).read_trajectories, offset, limit, step)

    async def checkpoints(self, job_id: str, *, owner: str | None) -> Rows:
        job = self._store.get(job_id, owner=owner)
        found = await asyncio.to_thread(checkpoints.entries, self._folder(job).checkpoints)
        return [views.checkpoint(entry) for entry in found]

    async def log(self, job_id: str, *, owner: str | None) -> tuple[str, bool]:
        """All that the job's runs printed, attempt after attempt, and whether nothing more will come."""
        job = self._store.get(job_id, owner=owner)
        return await asyncio.to_thread(self._read_log, job), job.state.is_terminal

    def _read_log(self, job: Job) -> str:
        parts = []
        for attempt in range(1, job.attempt + 1):
            kept = self._folder(job).log(attempt)
            text = (
                kept.read_text(encoding="utf-8", errors="replace")
                if kept.exists()
                else self._launcher.log(f"{job.id}-{attempt}")
            )
            parts.append(f"--- attempt {attempt} ---\n{text}" if attempt > 1 else text)
        return "".join(parts)

    def report(self, job_id: str, attempt: int, report: Mapping[str, Any]) -> None:
        """What a run tells of itself. The first report says that its workers are up. Reports of a run that is no
        longer the job's current one are dropped."""
        job = self._store.find(job_id)
        if job is None or job.attempt != attempt or not job.state.is_active:
            return
        numbers = {k: float(v) for k, v in report.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        eta = report.get("eta_s")
        job = replace(
            job,
            progress=Progress(
                step=int(report.get("step", job.progress.step)),
                total_steps=int(report.get("total_steps", job.progress.total_steps)),
                metrics=job.progress.metrics
                | {k: v for k, v in numbers.items() if k not in {"step", "total_steps", "eta_s"}},
                eta_s=None if eta is None else float(eta),
            ),
        )
        if job.state is JobState.STARTING:
            self._record([move(job, JobState.RUNNING, now=self._clock.now(), cause="workers are up")])
        else:
            self._store.save(job)

    def queue(self) -> Json:
        """Counts by state, and who waits for what."""
        counts = Counter({state.value: 0 for state in JobState}) + Counter(self._store.counts())
        return {
            "states": {state.value: counts[state.value] for state in JobState},
            "queue_size": counts[JobState.QUEUED.value],
            "running_jobs": sum(counts[state.value] for state in JobState if state.is_active),
            "completed_jobs": counts[JobState.SUCCEEDED.value],
            "failed_jobs": counts[JobState.FAILED.value],
            "autoscaling": {"mode": self._config.autoscaling.mode, "asks_for": self._wish.bundles()},
        }

    def _trial_folders(self, job: Job) -> Iterable[Path]:
        return self._runs_dir.glob(f"{job.id}-*") if sweeps.is_sweep(job.config) else ()

    def _folder(self, job: Job) -> RunFolder:
        return RunFolder.of(self._runs_dir, job.id)

    def _move(self, job: Job, to: JobState, cause: str, **changes: Any) -> Job:
        event = move(job, to, now=self._clock.now(), cause=cause, **changes)
        self._record([event])
        return event.job

    def _record(self, events: Events) -> None:
        self._store.append(events)
        for event in events:
            logger.info("job=%s %s -> %s cause=%s", event.job.id, event.from_state, event.job.state, event.cause)
