"""OWASP API8, security misconfiguration: what every answer carries, and what none does."""

from __future__ import annotations

from ipaddress import ip_network

import httpx
import pytest
from fastapi import FastAPI

from chatgrpo.api.app import create_app
from chatgrpo.api.services import Services
from chatgrpo.gateway.config import GatewayConfig, ThreatConfig
from tests.fake_services import FakeJobs
from tests.fakes import FakeClock

ATTACKER, PROXY = "203.0.113.9", "10.0.0.1"


async def test_every_kind_of_answer_is_careful(client: httpx.AsyncClient, jobs: FakeJobs, app: FastAPI) -> None:
    @app.get("/api/v2/models/{broken}")
    async def broken(broken: str) -> None:
        raise RuntimeError(f"secret of {broken}")

    app.state.gateway.add_route(
        app.state.gateway.table.match("GET", "/api/v2/models").row.model_copy(
            update={"path": "/api/v2/models/{broken}"}
        )
    )
    jobs.down = True
    for method, path, status in (
        ("GET", "/api/v2/models/x", 500),
        ("GET", "/api/v2/jobs", 503),
        ("GET", "/nothing", 404),
        ("TRACE", "/api/v2/jobs", 405),
        ("PUT", "/api/v2/jobs", 405),
        ("POST", "/api/v2/chat", 415),
        ("GET", "/openapi.json", 200),
    ):
        answer = await client.request(method, path, headers={"origin": "http://platform"})
        assert answer.status_code == status, (path, answer.status_code, answer.text[:200])
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "content-security-policy" in answer.headers
        assert not [name for name in answer.headers if name.startswith("access-control-")], "no other origin may read"
        for word in ("Traceback", "secret of", 'File "', "/site-packages/"):
            assert word not in answer.text


@pytest.mark.parametrize(
    ("peer", "forwarded", "is_blocked"),
    [
        (ATTACKER, "", True),
        (ATTACKER, "198.51.100.1", True),  # says he is somebody else
        (ATTACKER, "127.0.0.1", True),  # says he is us
        (PROXY, ATTACKER, True),
        (PROXY, f"127.0.0.1, {ATTACKER}", True),
        (PROXY, f"{ATTACKER}, 198.51.100.1", False),  # somebody else says he was in front
        (PROXY, "198.51.100.1", False),
        ("198.51.100.1", ATTACKER, False),  # nobody is blocked by being named
    ],
)
async def test_a_blocked_address_stays_blocked_whatever_it_says(
    services: Services, clock: FakeClock, peer: str, forwarded: str, is_blocked: bool
) -> None:
    gateway = GatewayConfig(
        allowed_hosts=("platform",),
        trusted_proxies=(ip_network("10.0.0.0/8"),),
        threats=ThreatConfig(blocked=(ip_network(f"{ATTACKER}/32"),)),
    )
    config = services.config.model_copy(update={"gateway": gateway})
    app = create_app(
        Services(
            config=config, clock=clock, jobs=services.jobs, chat=services.chat, conversations=services.conversations
        )
    )
    transport = httpx.ASGITransport(app, client=(peer, 4711))
    headers = {"x-forwarded-for": forwarded} if forwarded else {}
    async with httpx.AsyncClient(transport=transport, base_url="http://platform") as client:
        answer = await client.get("/api/v2/models", headers=headers)
    assert (answer.status_code == 403) is is_blocked, answer.text
    await app.state.gateway.close()
