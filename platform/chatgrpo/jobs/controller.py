"""One look at the world -> what to do. Pure: the scheduler actor gathers the facts and carries the decisions out.

Effects follow from the stored state and what Ray shows, not from having just decided: a job that is `starting` and
has no run is launched, one that is `checkpointing` is asked to stop, a run that no job claims is killed. So a scheduler
that dies between storing and doing does the same again after its restart, and nothing happens twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from chatgrpo.jobs import failure
from chatgrpo.jobs.amounts import Node
from chatgrpo.jobs.config import JobsConfig
from chatgrpo.jobs.failure import Cause
from chatgrpo.jobs.job import Event, Job, JobState, Progress, StopReason, move
from chatgrpo.jobs.scheduling.elastic import grow
from chatgrpo.jobs.scheduling.explain import Wait, waits
from chatgrpo.jobs.scheduling.plan import plan
from chatgrpo.jobs.scheduling.pools import Usage
from chatgrpo.jobs.scheduling.preemption import reclaim
from chatgrpo.jobs.scheduling.snapshot import Hours, book_of


class RunStatus(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def has_ended(self) -> bool:
        return self in {RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.STOPPED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What Ray shows of one submission, with what the run itself left behind once it has ended."""

    submission_id: str
    status: RunStatus
    message: str = ""
    exit_code: int | None = None
    result: Mapping[str, Any] | None = None
    log: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`jobs`: all that are not in a terminal state. `runs`: every submission of ours that Ray lists."""

    now: float
    jobs: Sequence[Job]
    runs: Mapping[str, Run]
    nodes: Sequence[Node]
    config: JobsConfig = field(default_factory=JobsConfig)
    usage: Usage | None = None
    hours: Hours = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Launch:
    job: Job


@dataclass(frozen=True, slots=True)
class AskStop:
    """Tell the run to save a checkpoint and end."""

    job: Job


@dataclass(frozen=True, slots=True)
class Kill:
    submission_id: str
    cause: str


Decision = Event | Launch | AskStop | Kill


@dataclass(frozen=True, slots=True)
class Step:
    """What to do, in order: store the events first. `waits` says why the others are pending."""

    decisions: list[Decision]
    waits: dict[str, Wait]
    usage: Usage


def step(facts: Facts) -> Step:
    """Decides everything for one moment."""
    jobs = {job.id: job for job in facts.jobs}
    events: list[Event] = []

    def apply(event: Event | None) -> None:
        if event:
            events.append(event)
            jobs[event.job.id] = event.job

    for job in facts.jobs:
        apply(_observe(job, facts))
        if jobs[job.id].state is JobState.PREEMPTED:
            apply(move(jobs[job.id], JobState.QUEUED, now=facts.now, cause="waits to go on from its checkpoint"))
    book = book_of(jobs.values(), facts.nodes, facts.config, facts.now, usage=facts.usage, hours=facts.hours)
    planned = plan(book, facts.now)
    for grant in planned.grants:
        apply(_start(jobs[grant.job_id], grant.workers, facts.now))
    for held in list(book.held.values()):
        over = next((pool.path for pool in book.chain(held.task.owner) if pool.hours_spent), None)
        if over is not None and held.can_stop:
            held.stopping, held.can_stop = True, False
            cause = f"the hours of {over!r} are used up"
            apply(_stop(jobs[held.task.id], StopReason.PREEMPT, cause, facts.now))
    if facts.config.preemption:
        for stop in reclaim(book, planned.blocks, facts.now):
            apply(_stop(jobs[stop.job_id], StopReason.PREEMPT, f"gives way to job {stop.for_job}", facts.now))
    growing = grow(book, facts.now)
    if growing:
        apply(_stop(jobs[growing], StopReason.RESIZE, "there is room for more workers", facts.now))
    decisions: list[Decision] = [*events, *_effects(jobs.values(), facts)]
    return Step(decisions, waits(book, planned), book.usage(facts.now))


def _stop(job: Job, reason: StopReason, cause: str, now: float) -> Event:
    return move(job, JobState.CHECKPOINTING, now=now, cause=f"{reason}: {cause}", stop_reason=reason)


def _start(job: Job, workers: int, now: float) -> Event:
    noun = "worker" if workers == 1 else "workers"
    attempt = job.attempt + 1
    cause = f"attempt {attempt} starts with {workers} {noun}"
    started_at = job.started_at or now
    return move(job, JobState.STARTING, now=now, cause=cause, attempt=attempt, workers=workers, started_at=started_at)


def _observe(job: Job, facts: Facts) -> Event | None:
    """The transition that an active job's run calls for, if any."""
    if not job.state.is_active:
        return None
    run = facts.runs.get(job.submission_id)
    waited_s = facts.now - job.state_since
    if run is None:
        if job.state is JobState.STARTING and waited_s < facts.config.launch_timeout_s:
            return None
        cause = Cause.LAUNCH_FAILED if job.state is JobState.STARTING else Cause.NODE_LOST
        return _lost(job, cause, f"Ray has no run {job.submission_id}", facts)
    if run.status.has_ended:
        return _ended(job, run, facts)
    limit_h = job.config.get("max_runtime_hours")
    if limit_h is not None and _ran_for_s(job, facts.now) > limit_h * 3600:
        # The run itself ends in time and keeps its model; this is for one that hangs.
        error = f"ran longer than max_runtime_hours ({limit_h:g}) and did not stop by itself"
        return move(job, JobState.FAILED, now=facts.now, cause="runtime limit", error=error)
    return None


RUNTIME_SLACK_S = 300.0
"""A run that watches its own limit gets this long to save and export before it is killed."""


def _ran_for_s(job: Job, now: float) -> float:
    return now - job.state_since - RUNTIME_SLACK_S if job.state is JobState.RUNNING else 0.0


def _ended(job: Job, run: Run, facts: Facts) -> Event:
    now, result = facts.now, run.result or {}
    status = result.get("status")
    # The result is written last: whatever befalls the process after it does not undo what it has published.
    if status == "succeeded":
        return _succeeded(job, result, now)
    if job.state is JobState.CHECKPOINTING and (status == "stopped" or run.status is RunStatus.STOPPED):
        paused = job.stop_reason is StopReason.PAUSE
        to = JobState.PAUSED if paused else JobState.PREEMPTED
        how = "stopped at a checkpoint" if status == "stopped" else "was killed, goes on from its last checkpoint"
        return move(job, to, now=now, cause=f"{job.stop_reason}: {how}")
    if run.status is RunStatus.SUCCEEDED and not result:
        error = "the run ended with status 0 but left no result"
        return move(job, JobState.FAILED, now=now, cause=Cause.USER, error=error)
    cause = failure.classify(result=run.result, message=run.message, log=run.log, exit_code=run.exit_code)
    error = failure.explain(result=run.result, message=run.message, log=run.log)
    return _lost(job, cause, error, facts)


def _succeeded(job: Job, result: Mapping[str, Any], now: float) -> Event:
    reason = result.get("reason") or None
    return move(
        job,
        JobState.SUCCEEDED,
        now=now,
        cause=f"run ended early: {reason}" if reason else "run succeeded",
        progress=_complete(job),
        end_reason=reason,
        published_step=result.get("published_step"),
    )


def _lost(job: Job, cause: Cause, error: str, facts: Facts) -> Event:
    """Queued again when the cause's budget allows it, else failed."""
    retry = failure.decide(job, cause, facts.config.retries)
    if retry is None:
        used = job.retries.get(cause, 0)
        tried = f" (after {used} retries)" if used else ""
        return move(job, JobState.FAILED, now=facts.now, cause=f"{cause}{tried}", error=error)
    used = job.retries.get(cause, 0) + 1
    return move(
        job,
        JobState.QUEUED,
        now=facts.now,
        cause=f"{cause}: retry {used}/{facts.config.retries.budget(cause)} in {retry.delay_s:.1f} s ({error})",
        retries={**job.retries, cause: used},
        overrides=retry.overrides,
        not_before=facts.now + retry.delay_s,
    )


def _complete(job: Job) -> Progress:
    """An early stop also ends at 100 percent."""
    return replace(job.progress, total_steps=job.progress.step or job.progress.total_steps, eta_s=0.0)


def _effects(jobs: Iterable[Job], facts: Facts) -> list[Decision]:
    effects: list[Decision] = []
    claimed = set()
    alive = {run.submission_id for run in facts.runs.values() if not run.status.has_ended}
    for job in jobs:
        if not job.state.is_active:
            continue
        claimed.add(job.submission_id)
        # One run of a job at a time: a new one waits until the killed one is gone, they share a folder.
        others = any(run.rpartition("-")[0] == job.id and run != job.submission_id for run in alive)
        if job.state is JobState.STARTING and job.submission_id not in facts.runs and not others:
            effects.append(Launch(job))
        if job.state is JobState.CHECKPOINTING:
            effects.append(AskStop(job))
            if facts.now - job.state_since > facts.config.preemption_grace_s:
                effects.append(Kill(job.submission_id, "did not reach a checkpoint in time"))
    effects += [Kill(run, "its job no longer runs") for run in sorted(alive - claimed)]
    return effects
