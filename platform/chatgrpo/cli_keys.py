"""`chatgrpo keys`: API keys from a terminal of the machine that holds the platform's store. Who can read that store
and its pepper is trusted: so the first key can be made before any exists."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from chatgrpo.clock import SystemClock
from chatgrpo.config import load_platform_config
from chatgrpo.gateway.api_keys import ApiKey, Keyring, Minted
from chatgrpo.gateway.gateway import pepper_of
from chatgrpo.gateway.identity import LOCAL
from chatgrpo.gateway.roles import Permission, Role
from chatgrpo.state.store import Store
from chatgrpo.state.stores import open_store

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="Make, list, rotate and revoke API keys.")
console = Console()

ConfigOption = Annotated[Path | None, typer.Option(help="Settings of the platform; see configs/platform.yaml.")]
KeyIdArgument = Annotated[str, typer.Argument(help="Id of a key, as `chatgrpo keys list` shows it.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.USER,
    tenant: Annotated[str, typer.Option(help="Whose jobs and conversations it sees.")] = LOCAL.tenant,
    permission: Annotated[
        list[Permission] | None, typer.Option(help="Fewer than the role has; may be repeated.")
    ] = None,
    days: Annotated[float | None, typer.Option(min=0, help="How long it works; without it for ever.")] = None,
    config: ConfigOption = None,
) -> None:
    """Make a key. From the first one on, the platform asks for keys."""
    expires_at = None if days is None else (datetime.now(UTC) + timedelta(days=days)).timestamp()

    async def make(keyring: Keyring) -> Minted:
        return await keyring.create(
            LOCAL, name=name, role=role, tenant=tenant, permissions=permission, expires_at=expires_at
        )

    _show(_with_keyring(config, make))


@app.command(name="list")
def list_keys(config: ConfigOption = None) -> None:
    """List keys of all tenants, newest first."""

    async def read(keyring: Keyring) -> list[ApiKey]:
        return await keyring.list(LOCAL, limit=1000)

    table = Table("key", "name", "tenant", "role", "created", "state", box=None, pad_edge=False)
    for key in _with_keyring(config, read):
        table.add_row(key.key_id, key.name, key.tenant, key.role, _date(key.created_at), _state(key))
    console.print(table)


@app.command()
def revoke(key_id: KeyIdArgument, config: ConfigOption = None) -> None:
    """Make a key stop working, everywhere within a second."""

    async def end(keyring: Keyring) -> ApiKey:
        return await keyring.revoke(LOCAL, key_id)

    console.print(f"key {_with_keyring(config, end).key_id} is revoked", highlight=False)


@app.command()
def rotate(
    key_id: KeyIdArgument,
    overlap_hours: Annotated[float, typer.Option(min=0, help="How long the former secret still works.")] = 0.0,
    config: ConfigOption = None,
) -> None:
    """Give a key a new secret."""

    async def change(keyring: Keyring) -> Minted:
        return await keyring.rotate(LOCAL, key_id, overlap_s=3600 * overlap_hours)

    _show(_with_keyring(config, change))


def _with_keyring(config: Path | None, act: Callable[[Keyring], Awaitable[T]]) -> T:
    async def run() -> T:
        platform = load_platform_config(config)
        store = await open_store(platform.redis_url or platform.state_db)

        async def opened() -> Store:
            return store

        try:
            pepper = pepper_of(platform.gateway, platform.home)
            return await act(Keyring(opened, pepper=pepper, clock=SystemClock()))
        finally:
            await store.close()

    return asyncio.run(run())


def _show(minted: Minted) -> None:
    typer.echo(minted.key)
    typer.secho(f"id {minted.stored.key_id}; the key is not shown again", dim=True, err=True)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {_date(key.revoked_at)}"
    return "works" if key.expires_at is None else f"until {_date(key.expires_at)}"
