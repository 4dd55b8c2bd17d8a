"""What the OpenAPI description says beyond the types of handlers: how to show a key, what each operation asks of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from chatgrpo.gateway.routes import RouteTable

SCHEMES: dict[str, dict[str, str]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer cgk_..."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
}


def describe(app: FastAPI, table: RouteTable) -> None:
    """Makes the description of `app` speak of `table`, once, when it is first asked for."""
    plain: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = with_security(plain(), table)
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
