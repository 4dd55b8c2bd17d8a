"""OWASP API3, broken object property level authorization: nothing is set that is not offered, nothing shown that is
not meant to be."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from chatgrpo.gateway.identity import LOCAL
from chatgrpo.gateway.roles import Role


def json_bodies(described: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (method.upper(), path)
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    ]


async def test_no_body_takes_a_field_that_is_not_described(client: httpx.AsyncClient) -> None:
    described = (await client.get("/openapi.json")).json()
    found = json_bodies(described)
    assert len(found) > 10
    for method, path in found:
        path = path.replace("{", "").replace("}", "")
        answer = await client.request(method, path, json={"is_admin": True, "tenant_id": "victim"})
        assert answer.status_code in {403, 422}, (method, path, answer.status_code, answer.text)
        if answer.status_code == 422:
            assert "is_admin: unknown field" in answer.json()["error"]["message"], (method, path, answer.text)


@pytest.mark.parametrize(
    "extra", [{"created_by": "root"}, {"key_id": "x"}, {"digests": []}, {"revoked_at": None}, {"created_at": 0}]
)
async def test_a_key_sets_nothing_of_itself(client: httpx.AsyncClient, app: FastAPI, extra: dict[str, Any]) -> None:
    key = (await app.state.gateway.keyring.create(LOCAL, name="a", role=Role.ADMIN)).key
    headers = {"x-api-key": key}
    answer = await client.post("/api/v2/keys", json={"name": "b", "role": "user", **extra}, headers=headers)
    assert answer.status_code == 422
    shown = json.dumps((await client.get("/api/v2/keys", headers=headers)).json())
    assert "digest" not in shown
    await app.state.gateway.close()
