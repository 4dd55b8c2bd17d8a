"""From an address, or the platform's settings, to conversations ready for use."""

from __future__ import annotations

from pathlib import Path

from chatgrpo.audit import AuditTrail
from chatgrpo.clock import Clock
from chatgrpo.config import PlatformConfig
from chatgrpo.state.config import StateConfig
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.stores import open_store
from chatgrpo.state.tiered import TieredStore


async def open_conversations(
    address: str | Path,
    *,
    settings: StateConfig | None = None,
    clock: Clock | None = None,
    is_audited: bool = True,
) -> Conversations:
    """Opened for use; the caller closes it."""
    settings = settings or StateConfig()
    store = await open_store(address, num_replicas=settings.redis_replicas)
    tiers = TieredStore(
        store,
        capacity=settings.cache_conversations,
        eviction=settings.eviction,
        cache_ttl_s=settings.cache_ttl_s,
        max_pending=settings.max_pending_writes,
        clock=clock,
    )
    await tiers.start()
    return Conversations(
        tiers,
        clock=clock,
        limits=settings.limits,
        level=settings.consistency,
        idle_ttl_s=settings.idle_ttl_s,
        snapshot_retention=settings.snapshot_retention,
        audit=AuditTrail(store, clock=clock) if is_audited else None,
    )


async def open_platform_conversations(platform: PlatformConfig) -> Conversations:
    """What the platform's settings say: Redis when there is a `redis_url`, else SQLite under `home`."""
    return await open_conversations(platform.redis_url or platform.state_db, settings=platform.state)
