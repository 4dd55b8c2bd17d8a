"""The store that keys, audit trail and limits rest on, opened at its first use and once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from chatgrpo.audit import AuditTrail
from chatgrpo.clock import Clock
from chatgrpo.errors import Unavailable
from chatgrpo.state.store import Store

logger = logging.getLogger(__name__)


class SharedStore:
    """Awaits `open_store` once, however many ask at the same time; tried again after a failure."""

    def __init__(self, open_store: Callable[[], Awaitable[Store]], *, clock: Clock) -> None:
        self._open_store = open_store
        self._lock = asyncio.Lock()
        self._clock = clock
        self._store: Store | None = None
        self._trail: AuditTrail | None = None

    async def __call__(self) -> Store:
        if self._store is None:
            async with self._lock:
                if self._store is None:
                    self._store = await self._open_store()
        return self._store

    async def trail(self) -> AuditTrail:
        if self._trail is None:
            self._trail = AuditTrail(await self(), clock=self._clock)
        return self._trail

    async def close(self) -> None:
        """Writes what the trail has noted, then lets go of the store."""
        if self._trail is not None:
            try:
                await self._trail.flush()
            except Unavailable as error:
                logger.error("the audit trail ends early: %s", error.message)
        if self._store is not None:
            await self._store.close()
            self._store = self._trail = None
