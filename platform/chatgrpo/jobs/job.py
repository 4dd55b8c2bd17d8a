"""A training job: what was asked, by whom, and how far it is.

The life of a job is the table TRANSITIONS; `move` is the only way to change a state, and it returns the event to store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

from chatgrpo.errors import Conflict
from chatgrpo.jobs.amounts import Request


class JobState(StrEnum):
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    CHECKPOINTING = "checkpointing"
    """Asked to stop at the next checkpoint boundary (`Job.stop_reason` says why)."""
    PREEMPTED = "preempted"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}

    @property
    def is_active(self) -> bool:
        """Whether a run exists or is about to: resources are held."""
        return self in {JobState.STARTING, JobState.RUNNING, JobState.CHECKPOINTING}


class StopReason(StrEnum):
    """Why a run was asked to stop at its next checkpoint boundary."""

    PREEMPT = "preempt"
    RESIZE = "resize"
    PAUSE = "pause"


_S = JobState
_ENDS = {_S.SUCCEEDED, _S.FAILED, _S.CANCELLED}
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    _S.QUEUED: frozenset({_S.STARTING, _S.PAUSED, _S.FAILED, _S.CANCELLED}),
    _S.STARTING: frozenset({_S.RUNNING, _S.CHECKPOINTING, _S.QUEUED, *_ENDS}),
    _S.RUNNING: frozenset({_S.CHECKPOINTING, _S.QUEUED, *_ENDS}),
    _S.CHECKPOINTING: frozenset({_S.PREEMPTED, _S.PAUSED, _S.QUEUED, *_ENDS}),
    _S.PREEMPTED: frozenset({_S.QUEUED, _S.PAUSED, _S.CANCELLED}),
    _S.PAUSED: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.FAILED: frozenset({_S.QUEUED}),
    _S.CANCELLED: frozenset({_S.QUEUED}),
    _S.SUCCEEDED: frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The last report of a run. `metrics` are the newest step's; `eta_s` is None until it can be told."""

    step: int = 0
    total_steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    eta_s: float | None = None

    @property
    def percent(self) -> float:
        return 100.0 * self.step / self.total_steps if self.total_steps else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job. `owner` is a path `tenant/project/user` (any depth). `config` is a TrainConfig as JSON, complete with
    the resources that were chosen at submit. Times are seconds since the epoch."""

    id: str
    owner: str
    config: dict[str, Any]
    submitted_at: float
    state: JobState = JobState.QUEUED
    state_since: float = 0.0
    attempt: int = 0
    """Runs started so far. The Ray submission of the current one is `submission_id`."""
    workers: int = 0
    """Workers granted to the current attempt; 0 when there is none."""
    started_at: float | None = None
    ended_at: float | None = None
    not_before: float = 0.0
    """Back-off: not started again before this time."""
    progress: Progress = field(default_factory=Progress)
    stop_reason: StopReason | None = None
    error: str | None = None
    end_reason: str | None = None
    """Why the run ended before its last step; None if it did not."""
    published_step: int | None = None
    """The step whose policy is published, once there is one."""
    retries: dict[str, int] = field(default_factory=dict)
    """Retries used, by cause of failure."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of `config` that a retry changed, for example a halved micro-batch."""
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    trace: str | None = None
    """W3C traceparent of the submission: what becomes of the job belongs to that trace."""

    @property
    def carrier(self) -> dict[str, str]:
        return {"traceparent": self.trace} if self.trace else {}

    @property
    def submission_id(self) -> str:
        return f"{self.id}-{self.attempt}"

    @property
    def priority(self) -> int:
        return int(self.config.get("priority", 1))

    @property
    def experiment_name(self) -> str:
        return str(self.config.get("experiment_name", ""))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        stop_reason = data.get("stop_reason")
        known = dict(data) | {
            "state": JobState(data["state"]),
            "progress": Progress(**data.get("progress", {})),
            "stop_reason": StopReason(stop_reason) if stop_reason else None,
        }
        return cls(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One transition: when, from where to where, and the cause in words. `job` is the record after it."""

    job: Job
    at: float
    from_state: JobState | None
    cause: str


def created(job: Job) -> Event:
    """The first event of a job's life."""
    return Event(job=job, at=job.submitted_at, from_state=None, cause="submitted")


def move(job: Job, to: JobState, *, now: float, cause: str, **changes: Any) -> Event:
    """The transition of `job` to state `to`; other changed fields ride along. Raises Conflict when it is not legal."""
    if to not in TRANSITIONS[job.state]:
        legal = ", ".join(sorted(TRANSITIONS[job.state])) or "none, it is final"
        raise Conflict(f"job {job.id} is {job.state}: it cannot become {to} (possible: {legal})")
    if to is JobState.FAILED:
        assert changes.get("error"), "a failed job says why"
    if to is JobState.QUEUED:
        changes = {"error": None, "end_reason": None, "ended_at": None, "workers": 0, "stop_reason": None} | changes
    if to.is_terminal or to in {JobState.PREEMPTED, JobState.PAUSED}:
        changes = {"workers": 0, "stop_reason": None, "ended_at": now if to.is_terminal else None} | changes
    cpu_seconds, gpu_seconds = used_until(job, now)
    used: dict[str, Any] = {"cpu_seconds": cpu_seconds, "gpu_seconds": gpu_seconds}
    moved = replace(job, state=to, state_since=now, **used, **changes)
    return Event(job=moved, at=now, from_state=job.state, cause=cause)


def used_until(job: Job, now: float) -> tuple[float, float]:
    """(CPU-seconds, GPU-seconds) used so far. The record is charged whenever an active state ends."""
    if not job.state.is_active:
        return job.cpu_seconds, job.gpu_seconds
    per_worker = Request.of_config(job.config).per_worker
    worker_seconds = job.workers * max(0.0, now - job.state_since)
    return (
        job.cpu_seconds + worker_seconds * per_worker.cpu / 1000,
        job.gpu_seconds + worker_seconds * per_worker.gpu / 1000,
    )


Json = dict[str, Any]
Rows = list[Json]


class JobService(Protocol):
    """What the API asks of jobs. Implemented by the scheduler actor's client and by a fake in tests. All methods
    return JSON-ready dicts (see `views.py`) and raise PlatformError subclasses (NotFound for another owner's job).
    `owner=None` sees every job."""

    async def submit(self, config: dict[str, Any], *, owner: str) -> Json:
        """`config`: a TrainConfig as JSON, or {"sweep": a SweepConfig}."""
        ...

    async def get(self, job_id: str, *, owner: str | None) -> Json: ...

    async def list(
        self, *, owner: str | None, state: JobState | None = None, limit: int = 50, sweeps_only: bool = False
    ) -> Rows: ...

    async def sweep(self, job_id: str, *, owner: str | None) -> Json:
        """A sweep with the table of its trials. Raises NotFound for a job that is none."""
        ...

    async def cancel(self, job_id: str, *, owner: str | None) -> Json: ...

    async def logs(self, job_id: str, *, owner: str | None, tail: int = 200) -> str: ...

    async def log_chunk(self, job_id: str, *, owner: str | None, offset: int = 0) -> Json:
        """{"text", "next_offset", "ended"}: what was logged since `offset` (characters); poll it to stream."""
        ...

    async def pause(self, job_id: str, *, owner: str | None) -> Json: ...

    async def resume(self, job_id: str, *, owner: str | None) -> Json: ...

    async def retry(self, job_id: str, *, owner: str | None) -> Json: ...

    async def delete(self, job_id: str, *, owner: str | None) -> Json: ...

    async def events(self, job_id: str, *, owner: str | None) -> Rows: ...

    async def checkpoints(self, job_id: str, *, owner: str | None) -> Rows: ...

    async def metrics(self, job_id: str, *, owner: str | None, after_step: int = -1) -> Rows:
        """What the run reported after each step later than `after_step`, in order."""
        ...

    async def trajectories(
        self, job_id: str, *, owner: str | None, offset: int = 0, limit: int = 50, step: int | None = None
    ) -> Rows:
        """Episodes in the order they were played; `step`: only those of that training step."""
        ...

    async def queue(self) -> Json:
        """Counts by state, capacity, what autoscaling asks for."""
        ...
