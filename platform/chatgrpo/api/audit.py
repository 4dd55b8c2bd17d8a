"""The audit trail over HTTP: who did what to what, when."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.requests import HTTPConnection

from chatgrpo.api.errors import RESPONSES
from chatgrpo.api.keys import GatewayOf
from chatgrpo.gateway.identity import Identity
from chatgrpo.gateway.roles import Permission

router = APIRouter(prefix="/api/v2/audit", tags=["keys"], responses=RESPONSES)


class Entry(BaseModel):
    """One act. `facts` hold its status, request id and address; `hash` covers the entry and the one before it."""

    number: int
    at: float = Field(description="Seconds since the epoch.")
    who: str
    what: str
    tenant: str
    target: str
    facts: dict[str, Any]
    hash: str


class Trail(BaseModel):
    entries: list[Entry]


@router.get("")
async def read_audit(
    connection: HTTPConnection,
    gateway: GatewayOf,
    what: Annotated[str | None, Query(max_length=64, description="Name of an act; `job.`: all of jobs.")] = None,
    before: Annotated[int | None, Query(ge=0, description="Only entries with a smaller number: the next page.")] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="At most so many, newest first.")] = 100,
) -> Trail:
    """Acts of the caller's tenant; of every tenant for who may manage these."""
    identity = connection.state.identity
    assert isinstance(identity, Identity)
    tenant = None if Permission.TENANTS_MANAGE in identity.permissions else identity.tenant
    trail = await gateway.store.trail()
    found = await trail.newest(tenant=tenant, what=what, before=before, limit=limit)
    return Trail(entries=[Entry(**entry.to_dict()) for entry in found])
