"""From an address, or the platform's settings, to conversations ready for use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chatgrpo.audit import AuditTrail
from chatgrpo.clock import Clock
from chatgrpo.config import PlatformConfig
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.stores import open_store
from chatgrpo.state.tiered import TieredStore


async def open_conversations(
    address: str | Path, *, clock: Clock | None = None, is_audited: bool = True, **settings: Any
) -> Conversations:
    """Opened for use; the caller closes it. `settings` are the other keyword arguments of `Conversations`."""
    store = await open_store(address)
    tiers = TieredStore(store, clock=clock)
    await tiers.start()
    audit = AuditTrail(store, clock=clock) if is_audited else None
    return Conversations(tiers, clock=clock, audit=audit, **settings)


async def open_platform_conversations(platform: PlatformConfig) -> Conversations:
    """What the platform's settings say: Redis when there is a `redis_url`, else SQLite under `home`."""
    return await open_conversations(platform.redis_url or platform.state_db)
