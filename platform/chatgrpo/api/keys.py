"""API keys over HTTP, for who has one that permits it. The first is made with `chatgrpo keys create`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import HTTPConnection

from chatgrpo.api.errors import RESPONSES
from chatgrpo.errors import Forbidden
from chatgrpo.gateway.api_keys import Keyring, Minted
from chatgrpo.gateway.gateway import Gateway
from chatgrpo.gateway.identity import Identity
from chatgrpo.gateway.roles import Permission, Role

router = APIRouter(prefix="/api/v2/keys", tags=["keys"], responses=RESPONSES)


class NewKey(BaseModel):
    """What the key may do; never more than the key that makes it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=128, description="What it is for; shown in lists.")
    role: Role = Field(description="viewer, user, trainer, operator or admin.")
    tenant: str | None = Field(
        None, min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Absent: your own."
    )
    permissions: list[Permission] | None = Field(None, description="Fewer than the role has; absent: all of them.")
    expires_at: float | None = Field(None, gt=0, lt=1e11, description="Seconds since the epoch; absent: never.")


class KeyView(BaseModel):
    """A key as it may be shown."""

    key_id: str
    name: str
    tenant: str
    role: Role
    permissions: list[Permission]
    created_at: float
    created_by: str
    expires_at: float | None
    revoked_at: float | None


class MintedKey(KeyView):
    key: str = Field(description="The key itself; it is shown this once and cannot be read again.")


class Keys(BaseModel):
    keys: list[KeyView]


async def _gateway(connection: HTTPConnection) -> Gateway:
    gateway = connection.app.state.gateway
    assert isinstance(gateway, Gateway)
    return gateway


GatewayOf = Annotated[Gateway, Depends(_gateway)]


async def _keyring(gateway: GatewayOf) -> Keyring:
    return gateway.keyring


async def _minter(connection: HTTPConnection) -> Identity:
    identity = connection.state.identity
    assert isinstance(identity, Identity)
    if identity.key_id is None:
        # Otherwise any program of this machine could lock its owner out.
        raise Forbidden("keys are managed with a key; make the first one with `chatgrpo keys create NAME --role admin`")
    return identity


KeyringOf = Annotated[Keyring, Depends(_keyring)]
Minter = Annotated[Identity, Depends(_minter)]
KeyId = Annotated[str, Path(min_length=1, max_length=64, description="Id given when the key was made.")]


@router.post("", status_code=201)
async def create_key(body: NewKey, keyring: KeyringOf, minter: Minter) -> MintedKey:
    """Makes a key."""
    return _shown(await keyring.create(minter, **body.model_dump()))


@router.get("")
async def list_keys(
    keyring: KeyringOf,
    minter: Minter,
    tenant: Annotated[str | None, Query(max_length=64, description="Only this tenant's.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many, newest first.")] = 100,
) -> Keys:
    """Keys of the caller's tenant; of every tenant for who may manage these."""
    return Keys(keys=[KeyView(**key.view()) for key in await keyring.list(minter, tenant=tenant, limit=limit)])


@router.delete("/{key_id}")
async def revoke_key(key_id: KeyId, keyring: KeyringOf, minter: Minter) -> KeyView:
    """Revokes a key for good. It stops working everywhere within a second, open streams and sockets included."""
    return KeyView(**(await keyring.revoke(minter, key_id)).view())


@router.post("/{key_id}/rotate")
async def rotate_key(
    key_id: KeyId,
    keyring: KeyringOf,
    minter: Minter,
    overlap_s: Annotated[float, Query(ge=0, le=7 * 86400, description="How long the former secret still works.")] = 0,
) -> MintedKey:
    """A new secret for the same key."""
    return _shown(await keyring.rotate(minter, key_id, overlap_s=overlap_s))


def _shown(minted: Minted) -> MintedKey:
    view: dict[str, Any] = minted.stored.view()
    return MintedKey(**view, key=minted.key)
