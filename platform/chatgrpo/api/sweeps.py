"""Sweeps: many runs of one configuration, to find the values that learn best."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query

from chatgrpo.api.errors import RESPONSES
from chatgrpo.api.identity import Owner
from chatgrpo.api.jobs import JobId, JobView
from chatgrpo.api.services import ServicesOf
from chatgrpo.jobs.job import JobState
from chatgrpo.jobs.sweeps.config import SweepConfig

router = APIRouter(prefix="/api/v2/sweeps", tags=["sweeps"], responses=RESPONSES)

_EXAMPLE = {
    "train": {"model": "tiny", "max_steps": 20, "eval_steps": 5},
    "space": {"learning_rate": {"type": "loguniform", "low": 1e-6, "high": 1e-3}},
    "num_samples": 8,
}
SweepBody = Annotated[
    SweepConfig,
    Body(
        description="The same fields as a file under configs/tune; `train` in full.",
        openapi_examples={"learning rate": {"value": _EXAMPLE}},
    ),
]


@router.post("", status_code=202)
async def submit_sweep(body: SweepBody, services: ServicesOf, owner: Owner) -> JobView:
    """Queues a sweep. It is a job like any other: its id works under /api/v2/jobs too, for its log, to pause it and to
    let it go on. What can never run is refused here, with the dimension and the value that is at fault."""
    answer = await services.jobs.submit({"sweep": body.model_dump(mode="json")}, owner=owner)
    return answer | {"sweep_id": answer["job_id"]}


@router.get("")
async def list_sweeps(
    services: ServicesOf,
    owner: Owner,
    state: Annotated[JobState | None, Query(description="Only sweeps in this state.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many, newest first.")] = 50,
) -> dict[str, Any]:
    """The caller's sweeps, newest first."""
    return {"sweeps": await services.jobs.list(owner=owner, state=state, limit=limit, sweeps_only=True)}


@router.get("/{job_id}")
async def get_sweep(job_id: JobId, services: ServicesOf, owner: Owner) -> JobView:
    """State, the table of its trials with the best first, and the best configuration so far, which POST /api/v2/train
    takes."""
    return await services.jobs.sweep(job_id, owner=owner)


@router.delete("/{job_id}")
async def cancel_sweep(
    job_id: JobId,
    services: ServicesOf,
    owner: Owner,
    purge: Annotated[bool, Query(description="Remove an ended sweep with its trials instead of cancelling.")] = False,
) -> JobView:
    """Cancels a sweep that has not ended; what its trials left stays. With `purge=true` removes one that has ended."""
    await services.jobs.sweep(job_id, owner=owner)  # another job is not to be found here
    if purge:
        return await services.jobs.delete(job_id, owner=owner)
    return await services.jobs.cancel(job_id, owner=owner)
