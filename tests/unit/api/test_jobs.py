"""/api/v2/jobs: lists, details, acts, logs."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from chatgrpo.api.jobs import follow_log
from tests.fake_services import FakeJobs


@pytest.fixture(autouse=True)
def some_jobs(jobs: FakeJobs) -> None:
    jobs.put("a", status="succeeded")
    jobs.put("b")
    jobs.put("theirs", owner="somebody-else")


async def ids(client: httpx.AsyncClient, query: str = "") -> list[str]:
    answer = await client.get(f"/api/v2/jobs{query}")
    assert answer.status_code == 200
    return [job["job_id"] for job in answer.json()["jobs"]]


async def test_only_the_callers_jobs_are_listed(client: httpx.AsyncClient) -> None:
    assert await ids(client) == ["b", "a"]
    assert await ids(client, "?state=succeeded") == ["a"]
    assert await ids(client, "?limit=1") == ["b"]


@pytest.mark.parametrize("query", ["state=done", "limit=0", "limit=many"])
async def test_a_wrong_query_is_named(client: httpx.AsyncClient, query: str) -> None:
    answer = await client.get(f"/api/v2/jobs?{query}")
    error = answer.json()["error"]
    name, value = query.split("=")
    assert (answer.status_code, error["field"], error["details"][0]["seen"]) == (422, name, repr(value))


async def test_one_job(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/v2/jobs/b")).json()["status"] == "running"


PATHS = ["", "/logs", "/logs?follow=true", "/events", "/checkpoints", "/trajectories", "/metrics"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("job_id", ["nobody", "theirs"])
async def test_unknown_and_foreign_jobs_look_the_same(client: httpx.AsyncClient, path: str, job_id: str) -> None:
    answer = await client.get(f"/api/v2/jobs/{job_id}{path}")
    assert (answer.status_code, answer.json()) == (
        404,
        {"error": {"code": "not_found", "message": f"there is no job {job_id}"}},
    )


@pytest.mark.parametrize(
    ("method", "path", "act"),
    [
        ("DELETE", "", "cancel"),
        ("DELETE", "?purge=true", "delete"),
        ("POST", "/cancel", "cancel"),
        ("POST", "/pause", "pause"),
        ("POST", "/resume", "resume"),
        ("POST", "/retry", "retry"),
    ],
)
async def test_acts_reach_the_scheduler(
    client: httpx.AsyncClient, jobs: FakeJobs, method: str, path: str, act: str
) -> None:
    assert (await client.request(method, f"/api/v2/jobs/b{path}")).json()["acted"] == act
    assert (await client.request(method, f"/api/v2/jobs/theirs{path}")).status_code == 404
    assert jobs.calls == [(act, "b")]


async def test_log_tail_is_text(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/v2/jobs/b/logs?tail=1")
    assert (answer.text, answer.headers["content-type"]) == ("step 2", "text/plain; charset=utf-8")


async def test_following_a_log_that_has_ended(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/v2/jobs/a/logs?follow=true")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == (
        'event: log\ndata: {"text": "step 1\\nstep 2\\n"}\nid: 14\n\n'
        'event: end\ndata: {"job_id": "a", "status": "succeeded"}\nid: 14\n\n'
    )
    resumed = await client.get("/api/v2/jobs/a/logs?follow=true", headers={"Last-Event-ID": "7"})
    assert json.loads(resumed.text.splitlines()[1].removeprefix("data: ")) == {"text": "step 2\n"}


async def test_following_a_log_that_grows(jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatgrpo.api.jobs.FOLLOW_INTERVAL_S", 0)
    jobs.ended = False
    events = follow_log(jobs, "b", owner="local")
    assert (await anext(events)).data == {"text": "step 1\nstep 2\n"}
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    assert not waiting.done()
    jobs.log += "step 3\n"
    assert (await waiting).data == {"text": "step 3\n"}
    jobs.ended = True
    assert (await anext(events)).event == "end"


async def test_episodes_by_page(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/v2/jobs/b/trajectories?offset=98&limit=5")
    assert answer.json() == {"job_id": "b", "offset": 98, "episodes": [{"episode": 98}, {"episode": 99}]}
    assert (await client.get("/api/v2/jobs/b/events")).json()["events"] == [{"to": "queued"}]
    assert (await client.get("/api/v2/jobs/b/checkpoints")).json()["checkpoints"] == [{"step": 10}]


async def test_metrics_follow_a_run_step_by_step(client: httpx.AsyncClient, jobs: FakeJobs) -> None:
    jobs.put("b")
    jobs.steps = [{"step": i, "reward": i / 4} for i in range(4)]
    answer = await client.get("/api/v2/jobs/b/metrics?after_step=1")
    assert answer.json() == {"job_id": "b", "steps": [{"step": 2, "reward": 0.5}, {"step": 3, "reward": 0.75}]}
    assert [s["step"] for s in (await client.get("/api/v2/jobs/b/metrics")).json()["steps"]] == [0, 1, 2, 3]


async def test_trajectories_of_one_step(client: httpx.AsyncClient, jobs: FakeJobs) -> None:
    jobs.put("b")
    jobs.episodes = [{"step": step, "reward": r} for step in (1, 2, 3) for r in (0.0, 1.0)]
    answer = await client.get("/api/v2/jobs/b/trajectories?step=2&limit=1&offset=1")
    assert answer.json()["episodes"] == [{"step": 2, "reward": 1.0}]
