"""Every route has its row, every row its route."""

from __future__ import annotations

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from pydantic import ValidationError
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from chatgrpo.api.route_table import ALIASES, ROUTES
from chatgrpo.compat import EnhancedGRPOGateway, RouteConfig
from chatgrpo.gateway.gateway import Gateway
from chatgrpo.gateway.identity import LOCAL
from chatgrpo.gateway.roles import PERMISSIONS, Role
from chatgrpo.gateway.routes import RouteTable
from tests.fake_services import FakeJobs


def served(app: FastAPI | APIRouter) -> set[tuple[str, str]]:
    """(method, path) of all that the application answers, mounted applications included."""
    found: set[tuple[str, str]] = set()
    for route in app.routes:
        if isinstance(route, Mount) and isinstance(route.app, StaticFiles):
            found.add(("GET", f"{route.path}/{{file:path}}"))
        elif isinstance(route, Mount):
            found |= {(method, route.path + path) for method, path in served(route.app)}  # type: ignore[arg-type]
        elif isinstance(route, WebSocketRoute):
            found.add(("WEBSOCKET", route.path))
        elif isinstance(route, Route):
            found |= {(method, route.path) for method in (route.methods or ()) if method != "HEAD"}
        else:
            found |= served(route.original_router)  # type: ignore[attr-defined]  # FastAPI's included router
    return found


def test_every_route_has_its_row_and_every_row_its_route(app: FastAPI) -> None:
    rows = {(method, row.path) for row in ROUTES for method in row.methods if row not in ALIASES}
    assert rows == served(app), "say in chatgrpo/api/route_table.py who may call it"


@pytest.mark.parametrize(
    "row", [row for row in ROUTES if row not in ALIASES], ids=lambda row: f"{row.methods[0]} {row.path}"
)
def test_what_changes_something_is_audited_and_needs_a_permission(row: RouteConfig) -> None:
    changes = set(row.methods) - {"GET", "WEBSOCKET"}
    assert bool(changes) == bool(row.audit)
    if changes:
        assert row.requires_auth
        assert row.permission is not None
        assert row.permission not in PERMISSIONS[Role.VIEWER]
    assert row.permission is not None or not row.requires_auth


def test_rows_are_found_by_method_and_path() -> None:
    one = RouteConfig(path="/jobs/{job_id}", methods=("GET",))
    two = RouteConfig(path="/jobs/{job_id}", methods=("DELETE",))
    late = RouteConfig(path="/jobs/{job_id}", methods=("GET",), timeout=1)
    new = RouteConfig(path="/jobs/new", methods=("POST",))
    table = RouteTable([one, two, new])
    assert table.match("GET", "/jobs/a").row is one
    assert table.match("DELETE", "/jobs/a").row is two
    assert table.match("GET", "/jobs/new").row is one, "the literal path has no GET"
    assert table.match("PUT", "/jobs/new").allowed == ("DELETE", "GET", "POST")
    assert table.match("GET", "/jobs/a/b").row is None
    table.add(late)
    assert table.match("GET", "/jobs/a").row is late
    assert len(table.rows()) == 3


async def test_a_route_without_a_row_is_closed(app: FastAPI, client: httpx.AsyncClient) -> None:
    @app.get("/forgotten")
    async def forgotten() -> str:
        return "secret"

    assert (await client.get("/forgotten")).status_code == 404
    refused = await client.put("/api/v2/chat")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert refused.json()["error"]["code"] == "method_not_allowed"


async def test_a_gateway_around_any_application(tmp_path: object) -> None:
    async def hello(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    gateway = EnhancedGRPOGateway(enable_metrics=True, home=tmp_path)
    gateway.add_route(
        RouteConfig(
            path="/train",
            methods=["post"],
            timeout=300.0,
            cache_ttl=0,
            rate_limit=60,
            requires_auth=True,
            allowed_roles=["admin", "trainer"],
        )
    )
    transport = httpx.ASGITransport(gateway.protect(hello))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        assert (await client.post("/train")).text == "hello"
        assert (await client.get("/elsewhere")).status_code == 404
    assert gateway.metrics is not None
    assert gateway.metrics.totals().total_requests == 2
    await gateway.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"path": "train"},
        {"path": "/x", "methods": ["BREW"]},
        {"path": "/x", "allowed_roles": ["root"]},
        {"p": 1},
        {"path": "/x", "methods": ["POST"], "cache_ttl": 5},
    ],
)
def test_a_wrong_row_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RouteConfig.model_validate(wrong)


async def test_settings_replace_a_row(gateway: Gateway) -> None:
    gateway.add_route(RouteConfig(path="/metrics", requires_auth=False))
    match = gateway.table.match("GET", "/metrics")
    assert match.row is not None
    assert not match.row.requires_auth


@pytest.mark.parametrize("row", ALIASES, ids=lambda row: row.path)
def test_an_alias_has_a_successor_with_the_same_method(row: RouteConfig) -> None:
    assert row.successor is not None
    for method in row.methods:
        found = RouteTable(ROUTES).match(method, row.successor).row
        assert found is not None
        assert found.path == row.successor


async def test_old_paths_answer_as_their_successors_do(
    client: httpx.AsyncClient, jobs: FakeJobs, gateway: Gateway
) -> None:
    jobs.put("a b")
    old, new = await client.get("/api/status/a%20b"), await client.get("/api/v2/jobs/a%20b")
    assert old.json()["metrics"] == new.json()["metrics"]
    assert old.headers["deprecation"] == "@1767225600"
    assert old.headers["link"] == '</api/v2/jobs/a%20b>; rel="successor-version"'
    assert "deprecation" not in new.headers
    health = await client.get("/health")
    assert health.headers["link"] == '</api/v2/health>; rel="successor-version"'
    said = await client.post("/api/chat", json={"message": "hi", "user_id": "u", "strategy": "default"})
    assert (said.status_code, said.json()["response"]) == (200, "Hello")
    gone = await client.delete(f"/api/conversations/{said.json()['conversation_id']}")
    assert (gone.status_code, gone.headers["deprecation"]) == (204, "@1767225600")
    assert (await client.get("/health")).json()["status"] == "healthy"
    await gateway.keyring.create(LOCAL, name="a", role=Role.USER)
    refused = await client.get("/api/status/a%20b")
    assert (refused.status_code, refused.headers["deprecation"]) == (401, "@1767225600")
    assert (await client.get("/health")).status_code == 200
