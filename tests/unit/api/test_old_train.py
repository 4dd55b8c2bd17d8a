"""POST /api/train and GET /api/status/{job_id}: both bodies, and answers in the old shape."""

from __future__ import annotations

import math
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from chatgrpo.api.old_train import old_answer
from chatgrpo.gateway.gateway import Gateway
from chatgrpo.gateway.identity import LOCAL
from chatgrpo.gateway.roles import Role
from tests.fake_services import FakeJobs

PROMPTS = {"prompts": ["Name a colour.", "Name a fruit."], "num_iterations": 3, "strategy": "computational"}


async def test_prompts_are_queued_and_answered_in_the_old_shape(client: httpx.AsyncClient, jobs: FakeJobs) -> None:
    answer = await client.post("/api/train", json=PROMPTS)
    assert answer.status_code == 202, answer.text
    assert answer.headers["deprecation"] == "@1767225600"
    assert answer.headers["link"] == '</api/v2/train>; rel="successor-version"'
    assert answer.json() == {
        "job_id": "job-0",
        "status": "queued",
        "iterations_completed": 12,
        "total_trajectories": 0,
        "average_reward": None,
        "computation_used": {"cpu_hours": 0.0, "gpu_hours": 0.0},
        "metrics": {"reward": 0.4125},
        "error": None,
    }
    config = jobs.configs["job-0"]
    assert config["environment"]["prompts"] == PROMPTS["prompts"]
    assert (config["model"], config["max_steps"], config["prompts_per_step"]) == ("tiny", 3, 2)
    assert (await client.get("/api/status/job-0")).json() == answer.json()


async def test_figures_are_those_of_the_steps(client: httpx.AsyncClient, jobs: FakeJobs) -> None:
    jobs.put("a", status="failed")
    jobs.views["a"]["usage"] = {"cpu_hours": 1.5, "gpu_hours": 0.25}
    jobs.steps = [
        {"step": 1, "reward": 0.5, "rollout/num_episodes": 16.0},
        {"step": 2, "reward": 1.0, "rollout/num_episodes": 8.0},
    ]
    answer = await client.get("/api/status/a")
    assert answer.headers["link"] == '</api/v2/jobs/a>; rel="successor-version"'
    assert answer.json() == {
        "job_id": "a",
        "status": "failed",
        "iterations_completed": 12,
        "total_trajectories": 24,
        "average_reward": 0.75,
        "computation_used": {"cpu_hours": 1.5, "gpu_hours": 0.25},
        "metrics": {"reward": 0.4125},
        "error": "out of tasks",
    }


def test_a_step_without_rewards_does_not_count() -> None:
    view = {"job_id": "a", "status": "running", "progress": {"current_step": 3}, "metrics": {}, "error": None}
    steps: list[dict[str, Any]] = [
        {"step": 1, "reward": None},
        {"step": 2, "reward": math.nan},
        {"step": 3, "reward": 0.5},
    ]
    assert old_answer(view, steps, cpu_hours=0.0, gpu_hours=0.0).average_reward == 0.5


@pytest.mark.parametrize("body", [{"model": "tiny", "max_steps": 2}, {"training_data": "reasoning_gym:gcd"}])
async def test_newer_bodies_are_answered_as_their_own_path_does(
    client: httpx.AsyncClient, body: dict[str, object], jobs: FakeJobs
) -> None:
    answer, new = [await client.post(path, json=body) for path in ("/api/train", "/api/v2/train")]
    assert (answer.status_code, new.status_code) == (202, 202), answer.text
    assert answer.json()["tracking"] == {"experiment_url": "http://platform/api/v2/jobs/job-0"}
    assert answer.json()["configuration"] == new.json()["configuration"]
    assert jobs.configs["job-0"] == jobs.configs["job-1"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"use_ruler_rewards": True}, "use_ruler_rewards"),
        ({"strategy": "neural"}, "strategy"),
        ({"distributed_config": {"nodes": 2}}, "distributed_config.nodes"),
        ({"prompts": "one"}, "prompts"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_what_cannot_be_honoured_is_named(
    client: httpx.AsyncClient, jobs: FakeJobs, change: dict[str, object], field: str
) -> None:
    refused = await client.post("/api/train", json=PROMPTS | change)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, field)
    assert jobs.configs == {}


async def test_the_newer_path_takes_no_prompts(client: httpx.AsyncClient) -> None:
    refused = await client.post("/api/v2/train", json={"prompts": ["a"]})
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "prompts")


async def test_it_is_asked_for_the_same_permission_and_audited(client: httpx.AsyncClient, app: FastAPI) -> None:
    gateway: Gateway = app.state.gateway
    for role, status in ((Role.USER, 403), (Role.TRAINER, 202)):
        key = (await gateway.keyring.create(LOCAL, name=role, role=role, tenant="acme")).key
        answer = await client.post("/api/train", json=PROMPTS, headers={"authorization": f"Bearer {key}"})
        assert (answer.status_code, "deprecation" in answer.headers) == (status, True)
    entries = await (await gateway.store.trail()).query(what="job.submit")
    assert [(e.target, e.facts["status"]) for e in entries] == [("/api/train", 403), ("/api/train", 202)]
