from __future__ import annotations

from typing import Any

import pytest

from chatgrpo.audit import AuditTrail
from chatgrpo.errors import Unavailable
from chatgrpo.jobs.auditing import TransitionAudit
from chatgrpo.jobs.job import Job, JobState, created, move
from chatgrpo.jobs.store import JobStore
from chatgrpo.state.memory import MemoryStore


def job(job_id: str) -> Job:
    return Job(id=job_id, owner="lab/ann", config={}, submitted_at=1.0, state_since=1.0)


async def test_every_transition_is_in_the_trail_once_and_in_order() -> None:
    store, trail = JobStore(":memory:"), AuditTrail(MemoryStore())

    async def open_trail() -> AuditTrail:
        return trail

    audit = TransitionAudit(store, open_trail)
    first, other = created(job("J")), created(job("K"))
    started = move(first.job, JobState.STARTING, now=2.0, cause="attempt 1 starts", attempt=1, workers=1)
    store.append([first, other])
    await audit.catch_up()
    store.append([started])
    lost = move(started.job, JobState.QUEUED, now=3.0, cause="worker_lost: retry 1/3 in 2.0 s (KeyError: secret)")
    store.append([lost])
    store.save(lost.job)
    # A scheduler that was started again goes on behind what was recorded.
    await TransitionAudit(store, open_trail).catch_up()
    await audit.catch_up()

    entries = await trail.query(tenant="lab/ann")
    assert [(e.what, e.target.rpartition("/")[2], e.facts["from"]) for e in entries] == [
        ("job.queued", "J", None),
        ("job.queued", "K", None),
        ("job.starting", "J", "queued"),
        ("job.queued", "J", "starting"),
    ]
    assert entries[-1].facts["cause"] == "worker_lost: retry 1/3 in 2.0 s"
    assert (await trail.verify()).is_intact


async def test_what_could_not_be_written_is_written_later() -> None:
    store, trail = JobStore(":memory:"), AuditTrail(MemoryStore())
    is_down = True

    async def open_trail() -> Any:
        if is_down:
            raise Unavailable("no store")
        return trail

    audit = TransitionAudit(store, open_trail)
    store.append([created(job(f"J{i}")) for i in range(600)])
    with pytest.raises(Unavailable):
        await audit.catch_up()
    is_down = False
    await audit.catch_up()

    entries = await trail.query(limit=1000)
    assert [e.target for e in entries] == [f"/api/v2/jobs/J{i}" for i in range(600)]
