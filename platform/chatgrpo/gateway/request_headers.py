"""Headers of a request, looked up by several layers of the gateway and parsed once."""

from __future__ import annotations

from starlette.types import Scope

_PARSED = "chatgrpo.headers"


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that lower-case name."""
    parsed: dict[bytes, bytes] | None = scope.get(_PARSED)
    if parsed is None:
        parsed = scope[_PARSED] = dict(reversed(scope["headers"]))
    value = parsed.get(name)
    return None if value is None else value.decode("latin-1")
