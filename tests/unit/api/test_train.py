"""POST /api/v2/train: both forms, and every kind of wrong body."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.fake_services import FakeJobs

SHORT = {
    "experiment_name": "production_agent",
    "agent_type": "MultiTurnAgent",
    "model_config": {"model_type": "llama2", "size": "7b"},
    "training_data": "/path/to/data",
    "num_epochs": 50,
    "cpu_cores": 8,
    "memory_gb": 32,
    "gpu_count": 4,
    "enable_wandb": True,
    "priority": 1,
}
FULL = {"experiment_name": "sums", "model": "tiny", "environment": {"type": "reasoning_gym", "dataset": "chain_sum"}}


async def test_full_form_is_queued(client: httpx.AsyncClient, jobs: FakeJobs) -> None:
    answer = await client.post("/api/v2/train", json=FULL)
    assert answer.status_code == 202, answer.text
    assert answer.json() == {
        "job_id": "job-0",
        "status": "queued",
        "experiment_name": "sums",
        "estimated_start_time": None,
        "configuration": {
            "agent_type": "SingleTurnAgent",
            "num_epochs": 1,
            "batch_size": 64,
            "resources": {"cpu_cores": 1.0, "memory_gb": 0.0, "gpu_count": 0.0},
        },
        "tracking": {"experiment_url": "http://platform/api/v2/jobs/job-0"},
    }
    assert jobs.configs["job-0"]["model"] == "tiny"
    assert jobs.configs["job-0"]["environment"]["dataset"] == "chain_sum"


async def test_short_form_is_queued_as_written(client: httpx.AsyncClient, jobs: FakeJobs) -> None:
    answer = await client.post("/api/v2/train", json=SHORT)
    assert answer.status_code == 202, answer.text
    config = jobs.configs["job-0"]
    assert config["model"] == "meta-llama/Llama-2-7b-chat-hf"
    assert config["environment"]["paths"] == ["/path/to/data"]
    assert (config["num_epochs"], config["num_workers"], config["report_to"]) == (50, 4, ["wandb"])


BAD: list[tuple[dict[str, Any], str, str, str | None]] = [
    (FULL | {"learning_rat": 1}, "learning_rat", "unknown field", "1"),
    (FULL | {"num_generations": 1}, "num_generations", "greater than or equal to 2", "1"),
    (FULL | {"learning_rate": "fast"}, "learning_rate", "valid number", "'fast'"),
    (FULL | {"environment": {"type": "reasoning_gym", "size": 0}}, "environment.size", "greater than or equal", "0"),
    (FULL | {"environment": {"type": "chess"}}, "environment", "chess", None),
    (FULL | {"environment": {"type": "inline", "prompts": [1]}}, "environment.prompts[0]", "valid string", "1"),
    (FULL | {"rewards": [{"type": "exact"}, {"type": "regex"}]}, "rewards[1].pattern", "is required", None),
    (FULL | {"rewards": [{"type": "numeric", "tolerance": -1}]}, "rewards[0].tolerance", "greater than", "-1"),
    (FULL | {"prompts_per_step": 3, "num_workers": 2}, "prompts_per_step", "3 is not a multiple", None),
    (SHORT | {"colour": "red"}, "colour", "unknown field", "'red'"),
    (SHORT | {"grpo_value_loss_coef": 0.7}, "grpo_value_loss_coef", "cannot be honoured", None),
    (SHORT | {"model_config": {"model_type": "eliza"}}, "model", "eliza", None),
    (SHORT | {"batch_size": 30}, "batch_size", "multiple of the 8", None),
    (SHORT | {"gpu_count": -1}, "gpu_count", "greater than or equal to 0", "-1"),
]


@pytest.mark.parametrize(("body", "field", "message", "seen"), BAD, ids=[f"{b[1]}:{b[2][:12]}" for b in BAD])
async def test_a_wrong_field_is_named(
    client: httpx.AsyncClient, jobs: FakeJobs, body: dict[str, Any], field: str, message: str, seen: str | None
) -> None:
    answer = await client.post("/api/v2/train", json=body)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["field"]) == ("invalid_request", field)
    assert message in error["message"]
    if seen is not None:
        assert error["details"][0]["seen"] == seen
    assert jobs.configs == {}


async def test_all_wrong_fields_are_named_at_once(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v2/train", json=FULL | {"seed": -1, "epsilon": 0})
    assert {d["field"] for d in answer.json()["error"]["details"]} == {"seed", "epsilon"}


@pytest.mark.parametrize("content", [b"{", b"", b"[1]", b'"text"', b"null", b"\xff\xfe"])
async def test_a_body_that_is_no_object_is_refused(client: httpx.AsyncClient, content: bytes) -> None:
    answer = await client.post("/api/v2/train", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}, answer.text
    assert answer.json()["error"]["message"]


async def test_a_body_that_is_not_json_is_415(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v2/train", data={"experiment_name": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


async def test_a_body_that_is_too_large_is_413(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v2/train", json=FULL | {"stop": ["x" * 30_000]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert "20000 bytes" in answer.json()["error"]["message"]


async def test_a_body_that_grows_too_large_is_413(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 5_000

    answer = await client.post("/api/v2/train", content=chunks(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
