"""A real Prometheus scrapes the platform; a collector that never answers is in nobody's way."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest
import uvicorn
import yaml
from fastapi import FastAPI

from chatgrpo.api.app import create_app
from chatgrpo.api.services import Services
from chatgrpo.clock import SystemClock
from chatgrpo.config import PlatformConfig
from chatgrpo.monitoring import tracing
from chatgrpo.monitoring.tracing import make_tracing
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.opening import open_conversations
from tests.fake_services import FakeChat, FakeJobs

SCRAPE = Path(__file__).parents[3] / "configs/prometheus/prometheus.yaml"
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")


@pytest.fixture
async def conversations() -> AsyncIterator[Conversations]:
    opened = await open_conversations("memory:", clock=SystemClock())
    yield opened
    await opened.close()


@pytest.fixture
def services(tmp_path: Path, conversations: Conversations) -> Services:
    config, jobs = PlatformConfig(home=tmp_path, default_model="tiny"), FakeJobs()
    jobs.put("a")
    return Services(config=config, clock=SystemClock(), jobs=jobs, chat=FakeChat(), conversations=conversations)


@pytest.fixture
def app(services: Services) -> FastAPI:
    return create_app(services)


@pytest.fixture
def scrape() -> list[dict[str, Any]]:
    """The platform's job in the configuration that is shipped."""
    shipped: list[dict[str, Any]] = yaml.safe_load(SCRAPE.read_text())["scrape_configs"]
    return [job for job in shipped if job["job_name"] == "chatgrpo"]


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool (Debian: prometheus)")
async def test_promtool_accepts_what_is_exposed(app: FastAPI) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        await client.get("/api/v2/jobs/a")
        text = (await client.get("/metrics")).content
    checked = await asyncio.to_thread(
        subprocess.run, [str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, check=False
    )
    # It also has opinions on names; what it cannot parse is status 1.
    assert checked.returncode in {0, 3}, checked.stderr.decode()
    assert b"error" not in checked.stderr.lower()


@pytest.mark.skipif(PROMETHEUS is None, reason="needs Prometheus (Debian: prometheus)")
async def test_a_real_prometheus_scrapes_it(app: FastAPI, tmp_path: Path, scrape: list[dict[str, Any]]) -> None:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn tells in no other way
        await asyncio.sleep(0.01)
    target = f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    for job in scrape:
        job |= {"static_configs": [{"targets": [target]}], "scrape_interval": "1s", "scrape_timeout": "1s"}
    config = tmp_path / "prometheus.yml"
    config.write_text(yaml.safe_dump({"scrape_configs": scrape}))
    command = [str(PROMETHEUS), f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    process = await asyncio.create_subprocess_exec(
        *command, "--web.listen-address=127.0.0.1:0", stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        address = await _listens_on(process.stderr)
        async with httpx.AsyncClient(base_url=f"http://{address}") as client, asyncio.timeout(60):
            while not (found := await _value(client, 'chatgrpo_jobs{state="running"}')):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            assert found == "1"
            assert await _value(client, "up") == "1"
    finally:
        process.kill()
        await process.wait()
        server.should_exit = True
        await serving


async def _listens_on(log: asyncio.StreamReader) -> str:
    async for line in log:
        text = line.decode()
        if "Listening on" in text:
            return text.split("address=")[1].split()[0]
    raise AssertionError("Prometheus ended")


async def _value(client: httpx.AsyncClient, query: str) -> str | None:
    answer = await client.get("/api/v1/query", params={"query": query})
    found: list[Any] = answer.json().get("data", {}).get("result", []) if answer.status_code == 200 else []
    return str(found[0]["value"][1]) if found else None


async def test_a_collector_that_never_answers_holds_up_no_request(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answered = Event(), Event()

    class Silent(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.set()
            assert answered.wait(60)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    collector = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    serving = Thread(target=collector.serve_forever)
    serving.start()
    made = make_tracing("api", otlp_endpoint=f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setattr(tracing, "_request_spans", made.requests)
    app, provider = create_app(services), made.provider
    with provider.get_tracer("test").start_as_current_span("first"):
        pass
    flushing = Thread(target=provider.force_flush)
    flushing.start()
    assert await asyncio.to_thread(asked.wait, 60)
    # The collector has a span and says nothing; whoever waited for it would wait for ever.
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        for _ in range(20):
            assert (await client.get("/api/v2/jobs/a")).status_code == 200
    answered.set()
    flushing.join()
    provider.shutdown()
    collector.shutdown()
    serving.join()
    collector.server_close()
