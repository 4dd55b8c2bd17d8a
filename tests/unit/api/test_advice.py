"""GET /api/v2/advice."""

from __future__ import annotations

import httpx
import pytest

from chatgrpo.api.advice import cost_of
from chatgrpo.monitoring.advice_config import AdviceConfig
from tests.fake_services import FakeJobs


async def test_advice_and_costs_of_the_callers_jobs(client: httpx.AsyncClient, jobs: FakeJobs) -> None:
    jobs.put("a", status="succeeded")
    jobs.views["a"]["usage"] = {"cpu_hours": 10.0, "gpu_hours": 1.0}
    jobs.put("b", status="queued", owner="bob")
    await client.get("/metrics")
    found = (await client.get("/api/v2/advice")).json()
    assert [advice["what"] for advice in found["advice"]] == ["chat_replicas", "training_workers"]
    assert found["costs"]["jobs"] == [{"job_id": "a", "cost": 2.5, "cpu_hours": 10.0, "gpu_hours": 1.0}]
    assert (found["costs"]["currency"], found["costs"]["per_1000_chats"], found["applied"]) == ("USD", None, False)
    assert set(found["windows"]) == {"5m", "1h"}


def test_a_running_job_costs_what_it_holds_until_now() -> None:
    view = {
        "job_id": "a",
        "status": "running",
        "usage": {"cpu_hours": 1.0, "gpu_hours": 0.0},
        "state_since": "1970-01-01T00:00:00.000+00:00",
        "resources": {"requested": {"cpu_cores": 8.0, "gpu_count": 4.0, "workers": 4}, "granted_workers": 2},
    }
    found = cost_of(view, AdviceConfig(cpu_hour=1, gpu_hour=10), now=1800.0)
    assert (found["cpu_hours"], found["gpu_hours"]) == (1 + 2, 1.0)
    assert found["cost"] == pytest.approx(13)
