"""Training jobs after they were submitted: look, follow, steer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import PlainTextResponse, Response

from chatgrpo.api.errors import RESPONSES
from chatgrpo.api.identity import Owner
from chatgrpo.api.services import ServicesOf
from chatgrpo.api.sse import Event, event_stream
from chatgrpo.jobs.job import JobService, JobState

router = APIRouter(prefix="/api/v2/jobs", tags=["jobs"], responses=RESPONSES)

# A run logs a line or two a step, and steps take seconds.
FOLLOW_INTERVAL_S = 0.5

JobId = Annotated[str, Path(description="Id given by POST /api/v2/train.", min_length=1, max_length=128)]
JobView = dict[str, Any]


@router.get("")
async def list_jobs(
    services: ServicesOf,
    owner: Owner,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many, newest first.")] = 50,
) -> dict[str, Any]:
    """The caller's jobs, newest first."""
    return {"jobs": await services.jobs.list(owner=owner, state=state, limit=limit)}


@router.get("/{job_id}")
async def get_job(job_id: JobId, services: ServicesOf, owner: Owner) -> JobView:
    """State, progress, newest metrics, and why it waits if it does."""
    return await services.jobs.get(job_id, owner=owner)


@router.delete("/{job_id}")
async def cancel_job(
    job_id: JobId,
    services: ServicesOf,
    owner: Owner,
    purge: Annotated[bool, Query(description="Remove an ended job with its files instead of cancelling.")] = False,
) -> JobView:
    """Cancels a job that has not ended; its checkpoints stay. With `purge=true` removes one that has ended."""
    if purge:
        return await services.jobs.delete(job_id, owner=owner)
    return await services.jobs.cancel(job_id, owner=owner)


@router.post("/{job_id}/cancel")
async def cancel_job_by_post(job_id: JobId, services: ServicesOf, owner: Owner) -> JobView:
    """The same as DELETE, for clients that cannot send it."""
    return await services.jobs.cancel(job_id, owner=owner)


@router.post("/{job_id}/pause")
async def pause_job(job_id: JobId, services: ServicesOf, owner: Owner) -> JobView:
    """Stops the run at its next checkpoint; it keeps its place until resumed."""
    return await services.jobs.pause(job_id, owner=owner)


@router.post("/{job_id}/resume")
async def resume_job(job_id: JobId, services: ServicesOf, owner: Owner) -> JobView:
    """Queues a paused job again; it continues from its last checkpoint."""
    return await services.jobs.resume(job_id, owner=owner)


@router.post("/{job_id}/retry")
async def retry_job(job_id: JobId, services: ServicesOf, owner: Owner) -> JobView:
    """Queues a failed or cancelled job again; it continues from its last checkpoint."""
    return await services.jobs.retry(job_id, owner=owner)


@router.get("/{job_id}/events")
async def list_events(job_id: JobId, services: ServicesOf, owner: Owner) -> dict[str, Any]:
    """Every change of state with its time and cause, oldest first."""
    return {"job_id": job_id, "events": await services.jobs.events(job_id, owner=owner)}


@router.get("/{job_id}/checkpoints")
async def list_checkpoints(job_id: JobId, services: ServicesOf, owner: Owner) -> dict[str, Any]:
    """The checkpoints that are kept."""
    return {"job_id": job_id, "checkpoints": await services.jobs.checkpoints(job_id, owner=owner)}


@router.get("/{job_id}/metrics")
async def list_metrics(
    job_id: JobId,
    services: ServicesOf,
    owner: Owner,
    after_step: Annotated[int, Query(ge=-1, description="Only steps later than this one.")] = -1,
) -> dict[str, Any]:
    """What the run reported after each step, oldest first: reward, KL, lengths, times and all other figures. Ask again
    with the last step seen to follow a run."""
    return {"job_id": job_id, "steps": await services.jobs.metrics(job_id, owner=owner, after_step=after_step)}


@router.get("/{job_id}/trajectories")
async def list_trajectories(
    job_id: JobId,
    services: ServicesOf,
    owner: Owner,
    offset: Annotated[int, Query(ge=0, description="Skip so many episodes.")] = 0,
    limit: Annotated[int, Query(ge=1, le=500, description="At most so many episodes.")] = 50,
    step: Annotated[int | None, Query(ge=0, description="Only episodes of this training step.")] = None,
) -> dict[str, Any]:
    """Sampled episodes in the order they were played: messages, rewards with their breakdown, exact token ids. Those of
    step 1 were played by the untrained model."""
    episodes = await services.jobs.trajectories(job_id, owner=owner, offset=offset, limit=limit, step=step)
    return {"job_id": job_id, "offset": offset, "episodes": episodes}


@router.get(
    "/{job_id}/logs",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {}, "text/event-stream": {}}, "description": "The log of the run."}},
)
async def read_logs(
    request: Request,
    job_id: JobId,
    services: ServicesOf,
    owner: Owner,
    tail: Annotated[int, Query(ge=1, le=100_000, description="The last so many lines.")] = 200,
    follow: Annotated[bool, Query(description="Stream the log from its beginning as server-sent events.")] = False,
) -> Response:
    """The last lines as text. With `follow=true`, events `log` ({"text"}) until the job has ended, then `end`; an
    event's id is the position after it, so a client that reconnects with Last-Event-ID misses and repeats nothing."""
    if not follow:
        return PlainTextResponse(await services.jobs.logs(job_id, owner=owner, tail=tail))
    seen = request.headers.get("last-event-id", "")
    offset = int(seen) if seen.isdecimal() else 0
    await services.jobs.get(job_id, owner=owner)  # an unknown id is a 404, not an event in a stream
    return event_stream(follow_log(services.jobs, job_id, owner=owner, offset=offset))


async def follow_log(jobs: JobService, job_id: str, *, owner: str, offset: int = 0) -> AsyncGenerator[Event, None]:
    """The log from `offset` (characters) on, until the job has ended and everything was sent."""
    while True:
        chunk = await jobs.log_chunk(job_id, owner=owner, offset=offset)
        offset = int(chunk["next_offset"])
        if chunk["text"]:
            yield Event(event="log", data={"text": chunk["text"]}, id=str(offset))
        elif chunk["ended"]:
            view = await jobs.get(job_id, owner=owner)
            yield Event(event="end", data={"job_id": job_id, "status": view["status"]}, id=str(offset))
            return
        else:
            await asyncio.sleep(FOLLOW_INTERVAL_S)
