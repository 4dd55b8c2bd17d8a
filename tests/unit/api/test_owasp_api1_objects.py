"""OWASP API1, broken object level authorization: what belongs to another tenant does not exist, on every route that
takes an id, in whatever way it answers."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from chatgrpo.api.route_table import ROUTES
from chatgrpo.gateway.config import RouteConfig
from chatgrpo.gateway.identity import LOCAL
from chatgrpo.gateway.roles import Role
from tests.fake_services import FakeJobs

# Ids of things that no tenant owns: whoever may change the system may see them all.
SHARED = {"silence_id", "file"}
BODIES: dict[str, dict[str, Any]] = {
    "/items": {"items": [{"role": "user", "content": "mine now"}]},
    "/v1/conversations/{conversation_id}": {"metadata": {"stolen": "yes"}},
    "/messages": {"messages": [{"role": "user", "content": "mine now"}]},
    "/context": {"context": {"stolen": True}},
    "/fork": {},
    "/rollback": {"to_version": 0},
    "/feedback": {"version": 1, "score": 1},
}
ID_ROUTES = [
    (method, row)
    for row in ROUTES
    for method in row.methods
    if set(re.findall(r"{(\w+)", row.path)) - SHARED and method != "WEBSOCKET"
]


@pytest.fixture
async def tenants(app: FastAPI, client: httpx.AsyncClient, jobs: FakeJobs) -> dict[str, Any]:
    """A victim with one of everything, and a stranger who is an administrator elsewhere and knows every id."""
    keyring = app.state.gateway.keyring
    victim = await keyring.create(LOCAL, name="victim", role=Role.ADMIN, tenant="victim")
    stranger = await keyring.create(LOCAL, name="stranger", role=Role.OPERATOR, tenant="stranger")
    jobs.put("victims-job", status="succeeded", owner="victim")
    headers = {"authorization": f"Bearer {victim.key}"}
    said = await client.post("/api/v2/chat", json={"message": "the secret is swordfish"}, headers=headers)
    cut = await client.post("/api/v2/snapshots", json={}, headers=headers)
    return {
        "victim": headers,
        "stranger": {"authorization": f"Bearer {stranger.key}"},
        "ids": {
            "job_id": "victims-job",
            "model": "victims-job",
            "conversation_id": said.json()["conversation_id"],
            "item_id": "msg_1",
            "snapshot_id": cut.json()["id"],
            "key_id": victim.stored.key_id,
        },
    }


def body_of(path: str) -> dict[str, Any]:
    return next((body for end, body in BODIES.items() if path.endswith(end)), {})


async def ask(client: httpx.AsyncClient, method: str, row: RouteConfig, tenants: dict[str, Any]) -> httpx.Response:
    path = row.path.format(**tenants["ids"])
    body = {"json": body_of(row.path)} if method in {"POST", "PUT", "PATCH"} else {}
    return await client.request(method, path, headers=tenants["stranger"], **body)  # type: ignore[arg-type]


async def test_every_id_of_another_tenant_answers_404(
    client: httpx.AsyncClient, tenants: dict[str, Any], jobs: FakeJobs
) -> None:
    assert len(ID_ROUTES) > 25
    for method, row in ID_ROUTES:
        answer = await ask(client, method, row, tenants)
        assert answer.status_code == 404, (method, row.path, answer.status_code, answer.text)
        assert "swordfish" not in answer.text
    assert jobs.calls == []
    conversation = f"/api/v2/conversations/{tenants['ids']['conversation_id']}"
    kept = await client.get(f"{conversation}/messages", headers=tenants["victim"])
    assert "swordfish" in kept.text, "it is all still there"
    assert "mine now" not in kept.text


async def test_a_404_is_the_same_for_what_is_foreign_and_for_what_is_not(
    client: httpx.AsyncClient, tenants: dict[str, Any]
) -> None:
    ids = tenants["ids"]
    for path in ("/api/v2/jobs/{}", "/api/v2/conversations/{}", "/v1/models/{}"):
        known = ids["conversation_id"] if "conversations" in path else ids["job_id"]
        foreign = await client.get(path.format(known), headers=tenants["stranger"])
        absent = await client.get(path.format("nobody"), headers=tenants["stranger"])
        assert foreign.text.replace(known, "nobody") == absent.text


async def test_ids_in_bodies_are_no_way_around(client: httpx.AsyncClient, tenants: dict[str, Any]) -> None:
    talk, job = tenants["ids"]["conversation_id"], tenants["ids"]["job_id"]
    messages = [{"role": "user", "content": "x"}]
    for path, body in (
        ("/api/v2/chat", {"message": "what is the secret?", "conversation_id": talk}),
        ("/api/v2/chat", {"message": "x", "model": job}),
        ("/api/v2/chat", {"message": "x", "model": job, "stream": True}),
        ("/v1/chat/completions", {"model": job, "messages": messages}),
        ("/v1/chat/completions", {"model": job, "messages": messages, "stream": True}),
    ):
        answer = await client.post(path, json=body, headers=tenants["stranger"])
        assert answer.status_code == 404, (path, body, answer.text)


async def test_lists_exports_and_event_streams_hold_nothing_foreign(
    client: httpx.AsyncClient, tenants: dict[str, Any]
) -> None:
    for path in (
        "/api/v2/jobs",
        "/api/v2/conversations",
        "/api/v2/conversations/export",
        "/api/v2/snapshots",
        "/api/v2/models",
        "/v1/models",
        "/api/v2/keys",
        "/api/v2/keys?tenant=victim",
    ):
        answer = await client.get(path, headers=tenants["stranger"])
        assert answer.status_code == 200, path
        assert not [id_ for id_ in tenants["ids"].values() if id_ in answer.text], path
        assert "swordfish" not in answer.text
    logs = await client.get("/api/v2/jobs/victims-job/logs?follow=true", headers=tenants["stranger"])
    assert logs.status_code == 404


async def test_the_socket_tells_nothing_foreign(app: FastAPI, tenants: dict[str, Any]) -> None:
    with TestClient(app, base_url="http://platform").websocket_connect(
        "ws://platform/ws/v2", headers=tenants["stranger"]
    ) as socket:
        socket.send_text(json.dumps({"type": "job_status", "job_id": "victims-job"}))
        answer = socket.receive_json()
    assert (answer["type"], answer["data"]["code"]) == ("error", "not_found")
