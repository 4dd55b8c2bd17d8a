"""The whole application with keys in use: who gets in, what they see, what is written down."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from chatgrpo.api.route_table import ALIASES
from chatgrpo.api.route_table import ROUTES as ALL_ROUTES
from chatgrpo.api.services import Services
from chatgrpo.audit import verify
from chatgrpo.errors import Unavailable
from chatgrpo.gateway.config import RouteConfig
from chatgrpo.gateway.gateway import Gateway
from chatgrpo.gateway.identity import LOCAL
from chatgrpo.gateway.roles import PERMISSIONS, Role
from tests.fake_services import FakeChat, FakeJobs
from tests.fakes import FakeClock

ROUTES = [row for row in ALL_ROUTES if row not in ALIASES]


async def key_for(gateway: Gateway, role: Role, tenant: str = "acme") -> str:
    return (await gateway.keyring.create(LOCAL, name=role, role=role, tenant=tenant)).key


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_loopback_is_open_until_the_first_key(client: httpx.AsyncClient, gateway: Gateway) -> None:
    assert (await client.get("/api/v2/jobs", headers=bearer("sk-anything"))).status_code == 200
    key = await key_for(gateway, Role.VIEWER)
    refused = await client.get("/api/v2/jobs")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert refused.json()["error"]["code"] == "unauthenticated"
    assert (await client.get("/api/v2/jobs", headers=bearer(key))).status_code == 200
    assert (await client.get("/api/v2/jobs", headers={"x-api-key": key})).status_code == 200
    assert (await client.get("/api/v2/jobs", headers=bearer(key[:-1] + "x"))).status_code == 401
    assert (await client.get("/api/v2/health")).status_code == 200


@pytest.mark.parametrize("role", Role)
async def test_a_role_can_do_what_its_permissions_say_on_every_route(
    client: httpx.AsyncClient, gateway: Gateway, role: Role
) -> None:
    headers = bearer(await key_for(gateway, role))
    for row in ROUTES:
        for method in set(row.methods) - {"WEBSOCKET"}:
            answer = await client.request(method, row.path.replace("{", "").replace("}", ""), headers=headers)
            allowed = row.permission is None or row.permission in PERMISSIONS[role]
            assert (answer.status_code == 403) is not allowed, (method, row.path, answer.text)
            assert answer.status_code != 401


async def test_no_key_gets_in_nowhere(client: httpx.AsyncClient, gateway: Gateway) -> None:
    await key_for(gateway, Role.ADMIN)
    for row in ROUTES:
        for method in set(row.methods) - {"WEBSOCKET"}:
            answer = await client.request(method, row.path)
            assert (answer.status_code == 401) is row.requires_auth, (method, row.path)


async def test_another_tenants_ids_do_not_exist(client: httpx.AsyncClient, gateway: Gateway, jobs: FakeJobs) -> None:
    """Broken object level authorization: HTTP and event streams."""
    jobs.put("theirs", status="succeeded", owner="other")
    mine = bearer(await key_for(gateway, Role.ADMIN, "acme"))
    other = bearer(await key_for(gateway, Role.ADMIN, "other"))
    said = await client.post("/api/v2/chat", json={"message": "hi"}, headers=other)
    talk = said.json()["conversation_id"]
    rows = [row for row in ROUTES if "{job_id}" in row.path or "{conversation_id}" in row.path]
    assert len(rows) > 10
    bodies = {"message": "hi", "messages": [{"role": "user", "content": "x"}], "context": {}, "version": 1, "score": 1}
    for row in rows:
        path = row.path.replace("{job_id}", "theirs").replace("{conversation_id}", talk).replace("{item_id}", "msg_1")
        answer = await client.request(row.methods[0], path, headers=mine, json=bodies)
        assert answer.status_code in {404, 422}, (path, answer.text)
        if row.methods[0] in {"GET", "DELETE"}:
            assert answer.status_code == 404
    for body in ({"message": "x", "conversation_id": talk}, {"message": "x", "model": "theirs"}):
        assert (await client.post("/api/v2/chat", json=body, headers=mine)).status_code == 404
    assert (await client.get("/api/v2/jobs/theirs/logs?follow=true", headers=mine)).status_code == 404
    assert (await client.get("/api/v2/jobs", headers=mine)).json() == {"jobs": []}
    assert jobs.calls == []
    assert (await client.get("/api/v2/jobs/theirs", headers=other)).status_code == 200


async def test_keys_over_http(client: httpx.AsyncClient, gateway: Gateway) -> None:
    refused = await client.post("/api/v2/keys", json={"name": "a", "role": "user"})
    assert (refused.status_code, "chatgrpo keys create" in refused.text) == (403, True)
    operator = bearer(await key_for(gateway, Role.OPERATOR))
    made = (await client.post("/api/v2/keys", json={"name": "bot", "role": "user"}, headers=operator)).json()
    assert (made["tenant"], made["role"], made["created_by"][:4]) == ("acme", "user", "key:")
    user = bearer(made["key"])
    assert (await client.get("/api/v2/models", headers=user)).status_code == 200
    assert (await client.get("/api/v2/keys", headers=user)).status_code == 403
    beyond = await client.post("/api/v2/keys", json={"name": "x", "role": "admin"}, headers=operator)
    assert (beyond.status_code, beyond.json()["error"]["code"]) == (403, "forbidden")
    listed = (await client.get("/api/v2/keys", headers=operator)).json()["keys"]
    assert [key["name"] for key in listed] == ["bot", "operator"]
    assert made["key"] not in json.dumps(listed)
    rotated = (await client.post(f"/api/v2/keys/{made['key_id']}/rotate", headers=operator)).json()
    assert (await client.get("/api/v2/models", headers=user)).status_code == 401
    assert (await client.get("/api/v2/models", headers=bearer(rotated["key"]))).status_code == 200
    await client.delete(f"/api/v2/keys/{made['key_id']}", headers=operator)
    assert (await client.get("/api/v2/models", headers=bearer(rotated["key"]))).status_code == 401
    assert (await client.delete("/api/v2/keys/nobody", headers=operator)).status_code == 404


async def test_a_revoked_key_ends_its_streams(
    client: httpx.AsyncClient, gateway: Gateway, speaker: FakeChat, clock: FakeClock
) -> None:
    speaker.hold = True
    minted = await gateway.keyring.create(LOCAL, name="a", role=Role.USER)
    asked = asyncio.create_task(
        client.post("/api/v2/chat", json={"message": "hi", "stream": True}, headers=bearer(minted.key))
    )
    await speaker.started.wait()
    await gateway.keyring.revoke(LOCAL, minted.stored.key_id)
    answer = await asyncio.wait_for(asked, 5)
    assert answer.text.rstrip().splitlines()[-2] == "event: error"
    assert "unauthenticated" in answer.text.rstrip().splitlines()[-1]
    assert speaker.cancelled.is_set()


def test_a_socket_needs_a_key_too(services: Services, app: FastAPI, gateway: Gateway) -> None:
    key = asyncio.run(key_for(gateway, Role.VIEWER))
    client = TestClient(app, base_url="http://platform")
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("ws://platform/ws/v2"):
        pass
    for path in ("/ws/v2", "/ws"):
        with client.websocket_connect(f"ws://platform{path}", headers=bearer(key)) as socket:
            socket.send_json({"type": "ping"})
            assert socket.receive_json()["type"] == "pong"


async def test_acts_are_in_the_trail_also_those_that_failed(
    client: httpx.AsyncClient, gateway: Gateway, services: Services, jobs: FakeJobs
) -> None:
    jobs.put("mine", owner="acme")
    key = await key_for(gateway, Role.TRAINER)
    await client.post("/api/v2/jobs/mine/pause", headers=bearer(key))
    await client.post("/api/v2/jobs/nobody/pause", headers=bearer(key))
    await client.post("/api/v2/jobs/mine/pause")
    await client.get("/api/v2/jobs/mine", headers=bearer(key))
    trail = await gateway.store.trail()
    entries = await trail.query(what="job.")
    assert [(e.what, e.target, e.tenant, e.facts["status"]) for e in entries] == [
        ("job.pause", "/api/v2/jobs/mine/pause", "acme", 200),
        ("job.pause", "/api/v2/jobs/nobody/pause", "acme", 404),
        ("job.pause", "/api/v2/jobs/mine/pause", "", 401),
    ]
    assert [e.who[:4] for e in entries] == ["key:", "key:", "anon"]
    assert (await verify(services.config.state_db)).is_intact
    written = await asyncio.to_thread(services.config.state_db.read_bytes)
    assert key.encode() not in written


async def test_an_act_that_cannot_be_audited_is_not_answered_as_done(
    client: httpx.AsyncClient, gateway: Gateway, jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(**_: object) -> None:
        raise Unavailable("no space left", 30)

    jobs.put("mine")
    monkeypatch.setattr(await gateway.store.trail(), "record", full)
    answer = await client.post("/api/v2/jobs/mine/pause")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert "no space left" in answer.json()["error"]["message"]


async def test_a_name_that_was_pointed_here_is_turned_away(client: httpx.AsyncClient) -> None:
    for host, status in (("platform:8002", 200), ("evil.example", 421), ("", 421), ("127.0.0.1.evil.example", 421)):
        assert (await client.get("/api/v2/models", headers={"host": host})).status_code == status, host


async def test_a_foreign_page_changes_nothing(client: httpx.AsyncClient, jobs: FakeJobs) -> None:
    jobs.put("mine")
    path = "/api/v2/jobs/mine/cancel"
    refused = await client.post(path, headers={"origin": "https://evil.example"})
    assert (refused.status_code, refused.json()["error"]["code"], jobs.calls) == (403, "foreign_page", [])
    assert (await client.post(path, headers={"origin": "http://platform"})).status_code == 200
    assert (await client.post(path)).status_code == 200


async def test_every_answer_carries_the_careful_headers(client: httpx.AsyncClient) -> None:
    for path in ("/api/v2/models", "/nowhere", "/docs"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert len(headers["x-request-id"]) == 32
        assert headers["cache-control"] == "no-store"
        assert "default-src 'none'" in headers["content-security-policy"]


async def test_the_platforms_own_deadline(client: httpx.AsyncClient, gateway: Gateway, speaker: FakeChat) -> None:
    await client.post("/api/v2/chat", json={"message": "opens the stores"})
    speaker.hold = True
    gateway.add_route(RouteConfig(path="/api/v2/chat", methods=("POST",), timeout=0.5, audit="chat.send"))
    late = await client.post("/api/v2/chat", json={"message": "hi"}, headers={"x-request-timeout-seconds": "0"})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert speaker.cancelled.is_set()


async def test_a_row_may_take_less_than_the_platform(client: httpx.AsyncClient, gateway: Gateway) -> None:
    gateway.add_route(RouteConfig(path="/api/v2/chat", methods=("POST",), max_body_bytes=20))
    answer = await client.post("/api/v2/chat", json={"message": "a long message"})
    assert (answer.status_code, "20 bytes" in answer.text) == (413, True)
