"""On whose behalf a request acts."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

# The owner of everything while the platform runs open on loopback.
LOCAL_OWNER = "local"


def owner_of(connection: HTTPConnection) -> str:
    """The tenant that the middleware in front has established, `local` when there is none."""
    return str(connection.scope.get("state", {}).get("owner", LOCAL_OWNER))


Owner = Annotated[str, Depends(owner_of)]
