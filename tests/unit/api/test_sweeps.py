from __future__ import annotations

import httpx

from tests.fake_services import FakeJobs

SWEEP = {
    "experiment_name": "rates",
    "train": {"model": "tiny", "max_steps": 8, "eval_steps": 2},
    "space": {"learning_rate": {"type": "loguniform", "low": 1e-6, "high": 1e-3}},
}


async def test_a_sweep_is_a_job_and_other_jobs_are_no_sweeps(client: httpx.AsyncClient, jobs: FakeJobs) -> None:
    jobs.put("run")
    made = await client.post("/api/v2/sweeps", json=SWEEP)
    assert made.status_code == 202, made.text
    sweep_id = made.json()["sweep_id"]
    assert jobs.configs[sweep_id]["sweep"]["train"]["max_steps"] == 8
    listed = (await client.get("/api/v2/sweeps")).json()["sweeps"]
    assert [view["job_id"] for view in listed] == [sweep_id]
    shown = (await client.get(f"/api/v2/sweeps/{sweep_id}")).json()
    assert (shown["trials"], shown["best"]) == ([], None)
    assert (await client.get("/api/v2/sweeps/run")).status_code == 404
    assert (await client.delete("/api/v2/sweeps/run")).status_code == 404
    assert jobs.calls == []
    assert (await client.delete(f"/api/v2/sweeps/{sweep_id}")).json()["acted"] == "cancel"
    assert (await client.delete(f"/api/v2/sweeps/{sweep_id}?purge=true")).json()["acted"] == "delete"


async def test_a_wrong_sweep_is_refused_by_name(client: httpx.AsyncClient) -> None:
    wrong = {**SWEEP, "space": {"learning_rate": {"type": "loguniform", "low": 0, "high": 1e-3}}}
    answer = await client.post("/api/v2/sweeps", json=wrong)
    assert answer.status_code == 422
    assert "space.learning_rate" in answer.text
