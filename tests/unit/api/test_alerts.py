"""Alerts and silences over HTTP."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI

from chatgrpo.api.services import Services
from tests.fake_services import FakeJobs

STALLED = "chatgrpo_training_rows_nonfinite"


@pytest.fixture
async def firing(services: Services) -> None:
    """A sick machine, a sick job of the caller's and one of somebody else's."""
    rows = [(STALLED, {"job_id": job_id}, 2.0) for job_id in ("mine", "theirs")]
    await services.monitor.report("x", [*rows, ("chatgrpo_component_up", {"component": "chat"}, 1.0)])


@pytest.mark.usefixtures("firing")
async def test_jobs_of_others_are_not_told_of(client: httpx.AsyncClient, jobs: FakeJobs) -> None:
    jobs.put("mine")
    jobs.put("theirs", owner="somebody-else")
    alerts = (await client.get("/api/v2/alerts")).json()["alerts"]
    assert [(a["name"], a["state"], a["labels"]) for a in alerts] == [("NotFinite", "firing", {"job_id": "mine"})]
    assert alerts[0]["message"].startswith("job mine: 2 rows")
    assert (await client.get("/api/v2/metrics")).json()["alerts"] == []


@pytest.mark.usefixtures("firing")
async def test_silence_and_end_it(client: httpx.AsyncClient, jobs: FakeJobs) -> None:
    jobs.put("mine")
    body = {"rule": "NotFinite", "labels": {"job_id": "mine"}, "seconds": 60, "reason": "known"}
    made = await client.post("/api/v2/alerts/silences", json=body)
    assert (made.status_code, made.json()["by"], made.json()["reason"]) == (201, "local", "known")
    assert (await client.get("/api/v2/alerts")).json()["alerts"][0]["silenced"] is True
    assert (await client.get("/api/v2/alerts/silences")).json()["silences"] == [made.json()]
    assert (await client.delete(f"/api/v2/alerts/silences/{made.json()['id']}")).status_code == 204
    assert (await client.get("/api/v2/alerts")).json()["alerts"][0]["silenced"] is False


async def test_wrong_silences_are_refused(client: httpx.AsyncClient) -> None:
    unknown = await client.post("/api/v2/alerts/silences", json={"rule": "Nope", "seconds": 1})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    endless = await client.post("/api/v2/alerts/silences", json={"seconds": 1e12})
    assert endless.json()["error"]["field"] == "seconds"


async def test_the_api_reports_to_the_monitor_while_it_runs(app: FastAPI, services: Services, jobs: FakeJobs) -> None:
    jobs.put("a")
    rows = await app.state.operations.rows(app.state.metrics.registry)
    known = {(name, *sorted(labels.items())): value for name, labels, value in rows}
    assert known["chatgrpo_training_step", ("job_id", "a")] == 12
    assert known["chatgrpo_component_up", ("component", "chat")] == 1
    assert known["chatgrpo_http_connections",] == 0
