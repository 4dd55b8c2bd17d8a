from __future__ import annotations

from typing import Any

import pytest

from chatgrpo.errors import InvalidRequest
from chatgrpo.jobs.orchestrator import ResourceRequirement, ResourceType, TrainingConfig, TrainingOrchestrator


class FakeJobs:
    async def submit(self, config: dict[str, Any], *, owner: str) -> dict[str, Any]:
        self.seen, self.owner = config, owner
        return {"job_id": "J1"}


async def test_a_job_is_submitted_with_its_resources_and_priority() -> None:
    jobs = FakeJobs()
    needs = [ResourceRequirement(ResourceType.GPU, 4.0), ResourceRequirement(ResourceType.MEMORY, 32.0)]
    config = TrainingConfig(
        experiment_name="advanced_grpo", training_data="d.jsonl", num_epochs=100, resource_requirements=needs
    )

    assert await TrainingOrchestrator(jobs).submit_training_job(config, priority=7) == "J1"  # type: ignore[arg-type]
    assert (jobs.seen["num_workers"], jobs.seen["num_epochs"], jobs.seen["priority"]) == (4, 100, 7)
    assert jobs.seen["resources"]["memory_gb_per_worker"] == 8.0


@pytest.mark.parametrize("amounts", [(1.0, 1.0), (0.5,)])
def test_what_cannot_be_given_is_refused(amounts: tuple[float, ...]) -> None:
    with pytest.raises(InvalidRequest, match="resource_requirements"):
        TrainingConfig(resource_requirements=[ResourceRequirement(ResourceType.GPU, a) for a in amounts])
