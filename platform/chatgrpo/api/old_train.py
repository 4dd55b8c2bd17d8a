"""Training by the paths without a version, for clients that were written for them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel, Discriminator, Field, Tag

from chatgrpo.api.advice import cost_of
from chatgrpo.api.errors import RESPONSES
from chatgrpo.api.identity import Owner
from chatgrpo.api.jobs import JobId
from chatgrpo.api.services import Services, ServicesOf
from chatgrpo.api.train import Submitted, train, train_form
from chatgrpo.jobs.prompts_request import PromptsRequest, is_prompts_request
from chatgrpo.jobs.seed_request import SeedTrainRequest
from chatgrpo.training.config import TrainConfig

router = APIRouter(prefix="/api", tags=["deprecated"], responses=RESPONSES, deprecated=True)


def _form(body: object) -> str:
    return "oldest" if isinstance(body, Mapping) and is_prompts_request(body) else train_form(body)


OldTrainBody = Annotated[
    Annotated[PromptsRequest, Tag("oldest")]
    | Annotated[SeedTrainRequest, Tag("short")]
    | Annotated[TrainConfig, Tag("full")],
    Discriminator(_form),
    Body(
        description="Prompts, or what POST /api/v2/train takes.",
        openapi_examples={"prompts": {"value": {"prompts": ["Name a colour.", "Name a fruit."], "num_iterations": 2}}},
    ),
]


class ComputationUsed(BaseModel):
    """Until now."""

    cpu_hours: float
    gpu_hours: float


class OldAnswer(BaseModel):
    """A job as the old paths show it; GET /api/v2/jobs/{job_id} says more."""

    job_id: str
    status: str
    iterations_completed: int = Field(description="Training steps done.")
    total_trajectories: int = Field(description="Episodes that these steps learned from.")
    average_reward: float | None = Field(description="Mean over these steps; null before the first.")
    computation_used: ComputationUsed
    metrics: dict[str, Any] = Field(description="Of the newest step.")
    error: str | None = Field(None, description="Why it failed, if it did.")


@router.post("/train", status_code=202)
async def train_by_old_path(
    body: OldTrainBody, request: Request, services: ServicesOf, owner: Owner
) -> OldAnswer | Submitted:
    """Queues a training job: prompts are answered with the job as GET /api/status/{job_id} shows it, any other body as
    POST /api/v2/train does. The platform's default model is trained on prompts."""
    if not isinstance(body, PromptsRequest):
        return await train(body, request, services, owner)
    config = body.to_train_config(model=services.config.default_model)
    submitted = await services.jobs.submit(config.model_dump(mode="json"), owner=owner)
    return await _answer(submitted["job_id"], services, owner)


@router.get("/status/{job_id}")
async def read_status(job_id: JobId, services: ServicesOf, owner: Owner) -> OldAnswer:
    """How far a job is, whichever way it was submitted."""
    return await _answer(job_id, services, owner)


async def _answer(job_id: str, services: Services, owner: str) -> OldAnswer:
    view, steps = await asyncio.gather(
        services.jobs.get(job_id, owner=owner), services.jobs.metrics(job_id, owner=owner)
    )
    used = cost_of(view, services.config.advice, now=services.clock.now())
    return old_answer(view, steps, cpu_hours=used["cpu_hours"], gpu_hours=used["gpu_hours"])


def old_answer(
    view: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], *, cpu_hours: float, gpu_hours: float
) -> OldAnswer:
    """`view` as of GET /api/v2/jobs/{job_id}; `steps`: the line of metrics of each step."""
    # A step whose rewards all failed has none.
    rewards = [r for line in steps if (r := line.get("reward")) is not None and math.isfinite(r)]
    return OldAnswer(
        job_id=view["job_id"],
        status=view["status"],
        iterations_completed=view["progress"]["current_step"],
        total_trajectories=int(sum(line.get("rollout/num_episodes") or 0 for line in steps)),
        average_reward=sum(rewards) / len(rewards) if rewards else None,
        computation_used=ComputationUsed(cpu_hours=cpu_hours, gpu_hours=gpu_hours),
        metrics=view["metrics"],
        error=view["error"],
    )
