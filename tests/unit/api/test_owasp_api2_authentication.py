"""OWASP API2, broken authentication: only a key opens the door, and what was shown at it is never written down."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatgrpo.api.app import create_app
from chatgrpo.api.services import Services
from chatgrpo.gateway.identity import LOCAL
from chatgrpo.gateway.roles import Role
from tests.fakes import FakeClock

CANARY = "canary5ecret"
# Injections that have opened other gateways, and forms that parsers disagree about.
ATTEMPTS = [
    f"Bearer {CANARY}",
    f"Bearer cgk_{CANARY}",
    f"bearer  cgk_01J00000000000000000000000_{CANARY}{'0' * 60}",
    f"Bearer ' OR '1'='1' -- {CANARY}",
    f"Bearer {CANARY}'; DROP TABLE logs; --",
    f"Bearer ${{jndi:ldap://{CANARY}}}",
    f"Bearer ../../{CANARY}",
    f"Bearer {CANARY}\x00",
    f"Bearer {CANARY}" + "A" * 7000,
    f"Basic {CANARY}",
    f"Bearer Bearer {CANARY}",
    f'Bearer {{"$ne": "{CANARY}"}}',
    f"{CANARY}",
    "Bearer ",
    "",
]


@pytest.fixture
async def key(app: FastAPI) -> str:
    made = await app.state.gateway.keyring.create(LOCAL, name="a", role=Role.ADMIN)
    return str(made.key)


def written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def test_no_attempt_opens_the_door_and_none_is_written_down(
    client: httpx.AsyncClient, app: FastAPI, services: Services, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = ""
    for attempt in ATTEMPTS:
        for name in ("authorization", "x-api-key"):
            for method, path in (
                ("GET", "/api/v2/jobs"),
                ("POST", "/v1/chat/completions"),
                ("DELETE", "/api/v2/keys/a"),
            ):
                answer = await client.request(method, path, headers={name: attempt.encode()})  # type: ignore[dict-item]
                assert answer.status_code == 401, (name, attempt, answer.status_code)
                told += answer.text + str(answer.headers)
    for path in (f"/api/v2/jobs?api_key={key}", f"/api/v2/jobs?key={CANARY}&token={CANARY}"):
        assert (await client.get(path)).status_code == 401, "a key in an address is none"
    metrics = await client.get("/metrics", headers={"authorization": f"Bearer {key}"})
    assert metrics.status_code == 200
    await app.state.gateway.close()
    # Not what the test's own client logs of its requests.
    logged = "".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))
    everything = (told + logged + metrics.text).encode() + written(services.config.home)
    assert CANARY.encode() not in everything
    assert key.encode() not in everything
    assert key[-20:].encode() not in everything


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=120))
async def test_any_text_is_a_refusal(client: httpx.AsyncClient, key: str, text: str) -> None:
    answer = await client.get("/api/v2/jobs", headers={"x-api-key": text.encode("latin-1")})  # type: ignore[dict-item]
    assert answer.status_code == 401


async def test_a_changed_key_is_a_refusal(client: httpx.AsyncClient, key: str) -> None:
    for wrong in (key[:-1], key + "0", key.upper(), key.replace("cgk_", "cgk-"), key[:40] + key[41:], key[::-1]):
        assert (await client.get("/api/v2/jobs", headers={"x-api-key": wrong})).status_code == 401
    assert (await client.get("/api/v2/jobs", headers={"x-api-key": key})).status_code == 200


async def test_a_revoked_key_stops_in_another_replica_within_a_second(
    app: FastAPI, services: Services, clock: FakeClock, key: str
) -> None:
    other = create_app(services)
    headers = {"x-api-key": key}
    transport = httpx.ASGITransport(other)
    async with httpx.AsyncClient(transport=transport, base_url="http://platform") as there:
        assert (await there.get("/api/v2/jobs", headers=headers)).status_code == 200
        keyring = app.state.gateway.keyring
        (stored,) = await keyring.list(LOCAL)
        await keyring.revoke(LOCAL, stored.key_id)
        clock.advance(1.0)
        assert (await there.get("/api/v2/jobs", headers=headers)).status_code == 401
    await other.state.gateway.close()
    await app.state.gateway.close()
