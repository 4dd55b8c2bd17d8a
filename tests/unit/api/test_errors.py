"""One shape for everything that goes wrong."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from chatgrpo.gateway.config import RouteConfig
from tests.fake_services import FakeJobs


async def test_unknown_routes_are_json_404(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/v3/secrets")
    assert (answer.status_code, answer.json()) == (
        404,
        {"error": {"code": "not_found", "message": "no route /api/v3/secrets; GET /docs lists them"}},
    )


async def test_a_wrong_method_is_405_with_allow(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/v2/chat")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["code"] == "method_not_allowed"


async def test_our_own_mistakes_show_no_trace(
    client: httpx.AsyncClient, jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(jobs, "get", broken)
    with caplog.at_level(logging.ERROR):
        answer = await client.get("/api/v2/jobs/a")
    assert (answer.status_code, answer.json()) == (
        500,
        {"error": {"code": "internal", "message": "the platform made a mistake; its log says which"}},
    )
    assert "unexpected error method=GET path=/api/v2/jobs/a" in caplog.text


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    api_key: int = 0
    max_tokens: int = 0
    name: str = Field("", max_length=3)


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        ({"api_key": "sk-123"}, None),
        ({"webhook_secret": "s"}, None),
        ({"max_tokens": "many"}, "'many'"),
        ({"name": "x" * 500}, "'" + "x" * 78 + "…"),
        ({"name": {"password": "s"}}, None),
    ],
)
async def test_secrets_and_long_values_are_not_repeated(
    app: FastAPI, client: httpx.AsyncClient, body: dict[str, Any], seen: str | None
) -> None:
    app.state.gateway.add_route(RouteConfig(path="/echo", methods=("POST",)))

    @app.post("/echo")
    async def echo(body: Body) -> None:
        pass

    answer = await client.post("/echo", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["details"][0].get("seen") == seen
    assert "sk-123" not in answer.text


async def test_openapi_and_docs_are_served(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert {"/api/v2/train", "/api/v2/jobs/{job_id}", "/api/v2/chat", "/api/v2/models"} <= set(document["paths"])
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for page in ("/docs", "/redoc"):
        assert (await client.get(page)).status_code == 200
