"""On whose behalf a request acts."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from chatgrpo.gateway.identity import LOCAL_TENANT


def owner_of(connection: HTTPConnection) -> str:
    """The tenant of the key, as the gateway in front has established it; `local` without a gateway."""
    return str(connection.scope.get("state", {}).get("owner", LOCAL_TENANT))


async def _owner(connection: HTTPConnection) -> str:
    return owner_of(connection)


Owner = Annotated[str, Depends(_owner)]
