"""Training jobs from Python: a configuration with resource requirements, submitted to the job service.

config = TrainingConfig(
    experiment_name="advanced_grpo", training_data="data.jsonl", num_epochs=100,
    resource_requirements=[ResourceRequirement(ResourceType.GPU, 4.0), ResourceRequirement(ResourceType.MEMORY, 32.0)],
)
job_id = await TrainingOrchestrator(jobs).submit_training_job(config, priority=1)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from chatgrpo.errors import InvalidRequest
from chatgrpo.jobs.job import JobService
from chatgrpo.jobs.seed_request import parse_train_request


class ResourceType(StrEnum):
    CPU = "cpu_cores"
    GPU = "gpu_count"
    MEMORY = "memory_gb"


@dataclass(frozen=True, slots=True)
class ResourceRequirement:
    """`amount`: logical CPUs, GPUs, or GB of memory, for the whole job."""

    type: ResourceType
    amount: float


class TrainingConfig:
    """The fields of the short request body (see `seed_request`), and the resources as a list. A field that is not
    given is left to the platform. Raises InvalidRequest when a resource is asked for twice or in parts of a GPU."""

    def __init__(self, *, resource_requirements: list[ResourceRequirement] | None = None, **fields: Any) -> None:
        asked: dict[str, Any] = {}
        for need in resource_requirements or []:
            if need.type.value in asked:
                raise InvalidRequest(f"{need.type.name} is listed twice; give its total once", "resource_requirements")
            if need.type is ResourceType.GPU and need.amount != int(need.amount):
                raise InvalidRequest(f"{need.amount} GPUs; give a whole number", "resource_requirements")
            asked[need.type.value] = int(need.amount) if need.type is ResourceType.GPU else need.amount
        self.fields: Mapping[str, Any] = {**fields, **asked}


@dataclass(frozen=True, slots=True)
class TrainingOrchestrator:
    """`jobs`: the job service, for example `actors.job_scheduler.JobClient()` beside a running platform."""

    jobs: JobService
    owner: str = field(default="local")

    async def submit_training_job(self, config: TrainingConfig, priority: int = 1) -> str:
        """The id of the queued job. Raises InvalidRequest naming the field that cannot be honoured."""
        train = parse_train_request({**config.fields, "priority": priority})
        submitted = await self.jobs.submit(train.model_dump(mode="json"), owner=self.owner)
        return str(submitted["job_id"])
