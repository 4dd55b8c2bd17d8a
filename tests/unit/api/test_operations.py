"""Health, metrics, status: real figures, and honest ones when a part is down."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.fake_services import FakeChat, FakeJobs
from tests.fakes import FakeClock


async def test_health_when_all_is_well(client: httpx.AsyncClient, jobs: FakeJobs, clock: FakeClock) -> None:
    jobs.put("a", status="running")
    jobs.put("b", status="queued")
    jobs.put("c", status="queued")
    clock.advance(90)
    health = (await client.get("/api/v2/health")).json()
    assert (health["status"], health["uptime"], health["active_jobs"], health["queue_size"]) == ("healthy", 90.0, 1, 2)
    assert health["components"] == {
        name: {"status": "healthy", "latency_ms": 0.0} for name in ("jobs", "chat", "conversations")
    }
    assert health["timestamp"] == "1970-01-12T13:48:10+00:00"
    assert 0 < health["resource_utilization"]["memory_percent"] < 100
    assert health["error_rate"] == 0


async def test_health_is_degraded_when_a_part_is_down(client: httpx.AsyncClient, speaker: FakeChat) -> None:
    speaker.down = True
    answer = await client.get("/api/v2/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert answer.json()["components"]["chat"] == {"status": "unhealthy", "message": "no chat replica answers"}
    metrics = (await client.get("/api/v2/metrics")).json()
    assert metrics["alerts"] == [
        {
            "name": "component_down",
            "severity": "critical",
            "component": "chat",
            "message": "no chat replica answers",
        }
    ]


async def test_health_is_503_when_nothing_answers(
    client: httpx.AsyncClient,
    jobs: FakeJobs,
    speaker: FakeChat,
    conversations: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def hangs() -> None:
        await asyncio.Event().wait()

    jobs.down = speaker.down = True
    monkeypatch.setattr(conversations, "ping", hangs)
    monkeypatch.setattr("chatgrpo.api.operations.PROBE_TIMEOUT_S", 0.01)
    answer = await client.get("/api/v2/health")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert "conversations: no answer within 0.01 s" in answer.json()["error"]["message"]


async def test_metrics_count_what_happened(client: httpx.AsyncClient, jobs: FakeJobs) -> None:
    for status in ("succeeded", "succeeded", "failed", "starting", "running", "cancelled", "queued"):
        jobs.put(f"{status}-{len(jobs.views)}", status=status)
    await client.get("/api/v2/jobs")
    await client.get("/nowhere")
    metrics = (await client.get("/api/v2/metrics")).json()
    training = metrics["training_metrics"]
    assert {k: v for k, v in training.items() if k != "jobs_by_state"} == {
        "queue_size": 1,
        "running_jobs": 2,
        "completed_jobs": 2,
        "failed_jobs": 1,
        "cancelled_jobs": 1,
    }
    api = metrics["api_metrics"]
    assert (api["total_requests"], api["error_rate"], api["active_connections"]) == (2, 0.0, 1)
    assert api["average_response_time"] > 0
    assert api["cache_hit_rate"] is None
    assert metrics["chat_metrics"] == {"loaded_models": ["tiny"], "active_requests": 0, "tokens_generated": 7}


async def test_prometheus_text_parses_and_labels_are_bounded(client: httpx.AsyncClient, jobs: FakeJobs) -> None:
    jobs.put("a", status="running")
    for job_id in ("a", "x", "y"):
        await client.get(f"/api/v2/jobs/{job_id}")
    await client.get("/random/path")
    await client.request("BREW", "/metrics")
    text = (await client.get("/metrics")).text
    samples = {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }
    route = ("route", "/api/v2/jobs/{job_id}")
    requests = "chatgrpo_http_requests_total"
    assert samples[requests, (("method", "GET"), route, ("status", "2xx"))] == 1
    assert samples[requests, (("method", "GET"), route, ("status", "4xx"))] == 2
    assert samples[requests, (("method", "GET"), ("route", "unmatched"), ("status", "4xx"))] == 1
    assert samples["chatgrpo_jobs", (("state", "running"),)] == 1
    assert samples["chatgrpo_chat_tokens_total", ()] == 7
    assert samples["chatgrpo_component_up", (("component", "jobs"),)] == 1
    assert "/random/path" not in text
    assert "BREW" not in text


async def test_status_says_what_runs(client: httpx.AsyncClient) -> None:
    status = (await client.get("/api/v2/system/status")).json()
    assert (status["status"], status["default_model"], status["state_store"]) == ("healthy", "tiny", "sqlite")
    assert status["strategies"] == ["advanced", "creative", "default", "precise"]
    assert status["chat"]["loaded_models"] == ["tiny"]


async def test_models_are_the_default_the_built_in_and_the_callers_own(
    client: httpx.AsyncClient, jobs: FakeJobs
) -> None:
    jobs.put("done", status="succeeded")
    jobs.put("going", status="running")
    jobs.put("theirs", status="succeeded", owner="somebody-else")
    models = (await client.get("/api/v2/models")).json()["models"]
    assert [(m["id"], m["source"], m["default"]) for m in models] == [
        ("tiny", "base", True),
        ("smollm2-135m-instruct", "base", False),
        ("done", "job", False),
    ]


async def test_training_figures_of_running_jobs_are_gauges(client: httpx.AsyncClient, jobs: FakeJobs) -> None:
    for job_id, status in (("a", "running"), ("b", "succeeded")):
        jobs.put(job_id, status=status)
        jobs.views[job_id]["metrics"] = {"reward": 0.5, "kl": 0.01, "time/step_s": 9.0, "unknown/figure": 1.0}
    answer = await client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    shown = {
        s.name: (s.labels, s.value)
        for family in parse_openmetrics(answer.text)
        for s in family.samples
        if s.name.startswith("chatgrpo_training_")
    }
    assert shown == {
        "chatgrpo_training_step": ({"job_id": "a"}, 12),
        "chatgrpo_training_total_steps": ({"job_id": "a"}, 30),
        "chatgrpo_training_reward": ({"job_id": "a"}, 0.5),
        "chatgrpo_training_kl_nats": ({"job_id": "a"}, 0.01),
        "chatgrpo_training_step_seconds": ({"job_id": "a"}, 9),
    }


async def test_a_scrape_survives_dead_parts(client: httpx.AsyncClient, jobs: FakeJobs, speaker: FakeChat) -> None:
    jobs.down = speaker.down = True
    text = (await client.get("/metrics")).text
    assert 'chatgrpo_component_up{component="jobs"} 0.0' in text
    assert "chatgrpo_jobs{" not in text
    assert "chatgrpo_memory_percent " in text
