"""Snapshots of a tenant's conversations over HTTP."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from chatgrpo.api.errors import RESPONSES
from chatgrpo.api.identity import Owner
from chatgrpo.api.services import ServicesOf

router = APIRouter(prefix="/api/v2/snapshots", tags=["conversations"], responses=RESPONSES)


class NewSnapshot(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field("", max_length=200, description="For people.")
    user_id: str | None = Field(None, description="Only this user's conversations; absent: all of the tenant's.")


@router.post("", status_code=201)
async def create(body: NewSnapshot, services: ServicesOf, owner: Owner) -> dict[str, Any]:
    """Notes the versions of all conversations at one instant, while writers go on."""
    taken = await services.conversations.create_snapshot(tenant=owner, user_id=body.user_id, name=body.name)
    return taken.to_dict()


@router.get("")
async def list_snapshots(services: ServicesOf, owner: Owner) -> dict[str, Any]:
    """Newest first."""
    return {"snapshots": [found.to_dict() for found in await services.conversations.list_snapshots(tenant=owner)]}


@router.post("/{snapshot_id}/restore")
async def restore(snapshot_id: str, services: ServicesOf, owner: Owner) -> dict[str, Any]:
    """Shows again what every conversation showed then, as new versions; `undo` is the snapshot of the state before."""
    return asdict(await services.conversations.restore_snapshot(snapshot_id, tenant=owner))


@router.delete("/{snapshot_id}", status_code=204)
async def delete(snapshot_id: str, services: ServicesOf, owner: Owner) -> None:
    await services.conversations.delete_snapshot(snapshot_id, tenant=owner)
