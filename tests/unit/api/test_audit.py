"""GET /api/v2/audit."""

from __future__ import annotations

import httpx
from fastapi import FastAPI

from tests.fake_services import FakeJobs


async def test_acts_are_shown_newest_first_and_by_page(client: httpx.AsyncClient, app: FastAPI, jobs: FakeJobs) -> None:
    for job_id in ("a", "b", "c"):
        jobs.put(job_id)
        await client.post(f"/api/v2/jobs/{job_id}/cancel")
    await client.post("/api/v2/alerts/silences", json={"seconds": 5})
    found = (await client.get("/api/v2/audit")).json()["entries"]
    assert [entry["what"] for entry in found] == ["alerts.silence", "job.cancel", "job.cancel", "job.cancel"]
    assert (found[1]["target"], found[1]["who"], found[1]["facts"]["status"]) == (
        "/api/v2/jobs/c/cancel",
        "local",
        200,
    )
    jobs_alone = (await client.get("/api/v2/audit?what=job.&limit=2")).json()["entries"]
    assert [entry["target"][-8:] for entry in jobs_alone] == ["c/cancel", "b/cancel"]
    older = (await client.get(f"/api/v2/audit?what=job.&before={jobs_alone[-1]['number']}")).json()["entries"]
    assert [entry["target"][-8:] for entry in older] == ["a/cancel"]
