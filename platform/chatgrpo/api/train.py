"""Asks for a training job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from chatgrpo.api.errors import RESPONSES
from chatgrpo.api.identity import Owner
from chatgrpo.api.services import ServicesOf
from chatgrpo.jobs.seed_request import SeedTrainRequest, is_seed_request
from chatgrpo.training.config import TrainConfig

router = APIRouter(prefix="/api/v2/train", tags=["jobs"], responses=RESPONSES)


def train_form(body: object) -> str:
    """Which of the two bodies it is meant to be."""
    return "short" if isinstance(body, Mapping) and is_seed_request(body) else "full"


TrainBody = Annotated[
    Annotated[SeedTrainRequest, Tag("short")] | Annotated[TrainConfig, Tag("full")],
    Discriminator(train_form),
    Body(
        description="A full TrainConfig (the same fields as a YAML file under configs/train), or the short form.",
        openapi_examples={
            "full": {"value": {"experiment_name": "sums", "environment": {"type": "reasoning_gym"}, "max_steps": 20}},
            "short": {"value": {"experiment_name": "mine", "training_data": "/path/to/data.jsonl", "gpu_count": 0}},
        },
    ),
]


class RequestedResources(BaseModel):
    """Of the whole job. `memory_gb` 0: none is reserved."""

    model_config = ConfigDict(extra="allow")

    cpu_cores: float
    memory_gb: float
    gpu_count: float


class JobConfiguration(BaseModel):
    agent_type: str
    num_epochs: int
    batch_size: int = Field(description="Completions per step.")
    resources: RequestedResources


class Tracking(BaseModel):
    experiment_url: str


class Submitted(BaseModel):
    """The answer to a submission."""

    model_config = ConfigDict(extra="allow")

    job_id: str
    status: str
    experiment_name: str
    estimated_start_time: str | None = Field(description="ISO 8601; null while nothing tells when others end.")
    configuration: JobConfiguration
    tracking: Tracking


@router.post("", status_code=202)
async def train(body: TrainBody, request: Request, services: ServicesOf, owner: Owner) -> Submitted:
    """Queues a training job. What can never run (an unknown model or data set, more GPUs than the cluster can have) is
    refused here, with the reason."""
    config = body.to_train_config() if isinstance(body, SeedTrainRequest) else body
    view: dict[str, Any] = await services.jobs.submit(config.model_dump(mode="json"), owner=owner)
    url = str(view["tracking"]["experiment_url"])
    if url.startswith("/"):
        view = view | {"tracking": {**view["tracking"], "experiment_url": f"{str(request.base_url).rstrip('/')}{url}"}}
    return Submitted.model_validate(view)
