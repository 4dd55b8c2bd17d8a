"""What the OpenAPI description says beyond the types of handlers: how to show a key, what each operation asks of it,
which answers hold the id that others take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from chatgrpo.gateway.routes import RouteTable

SCHEMES: dict[str, dict[str, str]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer cgk_..."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
}

# An answer (operation, status), where in it the id is, and the parameter that takes it.
IDS: tuple[tuple[str, str, str, str, str], ...] = (
    ("post", "/api/v2/train", "202", "/job_id", "job_id"),
    ("post", "/api/train", "202", "/job_id", "job_id"),
    ("post", "/api/v2/chat", "200", "/conversation_id", "conversation_id"),
    ("post", "/api/v2/conversations", "201", "/id", "conversation_id"),
    ("post", "/v1/conversations", "200", "/id", "conversation_id"),
    ("post", "/v1/conversations/{conversation_id}/items", "200", "/first_id", "item_id"),
    ("post", "/api/v2/snapshots", "201", "/id", "snapshot_id"),
    ("post", "/api/v2/keys", "201", "/key_id", "key_id"),
)


def describe(app: FastAPI, table: RouteTable) -> None:
    """Makes the description of `app` speak of `table`, once, when it is first asked for."""
    plain: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = with_links(with_security(plain(), table))
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def with_security(schema: dict[str, Any], table: RouteTable) -> dict[str, Any]:
    """Adds the schemes, and to each operation which of them it takes and the permission it needs."""
    schema.setdefault("components", {})["securitySchemes"] = SCHEMES
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            row = table.match(method.upper(), path).row
            is_public = row is not None and not row.requires_auth
            operation["security"] = [] if is_public else [{name: []} for name in SCHEMES]
            if row is not None and row.permission is not None:
                operation["x-permission"] = str(row.permission)
    return schema


def with_links(schema: dict[str, Any]) -> dict[str, Any]:
    """Adds to each answer that holds an id links to all operations that take it."""
    for method, path, status, pointer, parameter in IDS:
        answer = schema["paths"][path][method]["responses"][status]
        answer["links"] = {
            operation["operationId"]: {
                "operationId": operation["operationId"],
                "parameters": {f"path.{parameter}": f"$response.body#{pointer}"},
            }
            for target, operations in schema["paths"].items()
            if target.endswith(f"{{{parameter}}}") or f"{{{parameter}}}/" in target
            for operation in operations.values()
        }
    return schema
