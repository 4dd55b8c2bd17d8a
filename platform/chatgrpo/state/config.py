"""Settings of what is remembered. Imports nothing of the platform's settings, which include these."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from chatgrpo.state.consistency import Consistency
from chatgrpo.state.eviction import EvictionPolicy
from chatgrpo.state.limits import Limits


class StateConfig(BaseModel):
    """The section `state` of `configs/platform.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    consistency: Consistency = Field(
        Consistency.SESSION, description="What a request gets that names no level: eventual, session, causal, strong."
    )
    num_shards: int = Field(1, ge=1, le=256, description="Actors that keep hot conversations; may change at any time.")
    cache_conversations: int = Field(4096, ge=1, description="Conversations each shard keeps decoded in memory.")
    eviction: EvictionPolicy = Field(
        EvictionPolicy.ADAPTIVE, description="Who leaves the cache: adaptive, lru, lfu or ttl."
    )
    cache_ttl_s: float = Field(300.0, gt=0, description="With eviction ttl: how long a copy may stay.")
    max_pending_writes: int = Field(
        1024, ge=0, description="Eventual writes that may wait in one shard; then it waits."
    )
    idle_ttl_s: float | None = Field(
        None, gt=0, description="Conversations idle for so long are deleted, unless they say otherwise; null: never."
    )
    snapshot_retention: int = Field(20, ge=1, le=1000, description="Snapshots kept for a tenant; the oldest go first.")
    redis_replicas: int = Field(0, ge=0, description="Replicas that must have a durable write before it is answered.")
    limits: Limits = Field(default_factory=Limits, description="Largest message, append and context.")
