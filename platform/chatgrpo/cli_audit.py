"""`chatgrpo audit`: the audit trail from a terminal of the machine that holds the platform's store."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from chatgrpo.audit import Anchor, AuditEntry, AuditTrail, verify
from chatgrpo.config import load_platform_config
from chatgrpo.errors import InvalidRequest, NotFound
from chatgrpo.state.stores import open_store

app = typer.Typer(no_args_is_help=True, help="Check and search the trail of who did what.")

ConfigOption = Annotated[Path | None, typer.Option(help="Settings of the platform; see configs/platform.yaml.")]
DAY_S = 86400.0


@app.command(name="verify")
def verify_trail(
    anchor: Annotated[
        str | None, typer.Option(help="COUNT:HASH that an earlier verify showed: finds a trail cut or made anew.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Check the whole chain. Ends with status 1 and names the first bad entry when somebody tampered with it."""
    known = _anchor(anchor) if anchor else None
    found = asyncio.run(verify(_address(config), anchor=known))
    if found.problem is not None:
        typer.secho(f"tampered with: {found.problem}", fg="red", err=True)
        raise typer.Exit(1)
    typer.echo(f"{found.count} entries are intact; anchor {found.anchor.count}:{found.anchor.hash}")


@app.command()
def search(
    who: Annotated[str | None, typer.Option(help="As in an entry: key:ID, local.")] = None,
    what: Annotated[str | None, typer.Option(help="An act, or with a dot at its end all below: `job.`.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose it was.")] = None,
    target: Annotated[str | None, typer.Option(help="What was acted on.")] = None,
    days: Annotated[float, typer.Option(min=0, help="How far to look back.")] = 30.0,
    limit: Annotated[int, typer.Option(min=1, help="Most entries shown.")] = 100,
    config: ConfigOption = None,
) -> None:
    """Show entries as JSON lines, oldest first."""

    async def read() -> list[AuditEntry]:
        store = await open_store(_address(config))
        try:
            since = datetime.now(UTC).timestamp() - days * DAY_S
            return await AuditTrail(store).query(
                who=who, what=what, tenant=tenant, target=target, since=since, limit=limit
            )
        finally:
            await store.close()

    for entry in asyncio.run(read()):
        at = datetime.fromtimestamp(entry.at, UTC).isoformat(timespec="milliseconds")
        typer.echo(json.dumps(entry.body() | {"at": at}, ensure_ascii=False))


def _address(config: Path | None) -> str | Path:
    """Raises NotFound instead of making an empty store."""
    platform = load_platform_config(config)
    if platform.redis_url is None and not platform.state_db.exists():
        raise NotFound(f"there is no store {platform.state_db}; name the platform's settings with --config")
    return platform.redis_url or platform.state_db


def _anchor(text: str) -> Anchor:
    found = re.fullmatch(r"(\d+):([0-9a-f]{64})", text)
    if found is None:
        raise InvalidRequest(f"{text!r} is not COUNT:HASH, as `chatgrpo audit verify` shows it", "anchor")
    return Anchor(count=int(found[1]), hash=found[2])
