"""Ends what is still being answered when its key is revoked or expires: streams, sockets, long requests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from chatgrpo.errors import Unauthenticated, Unavailable
from chatgrpo.gateway.api_keys import RECHECK_S, Keyring


@dataclass(slots=True, eq=False)
class Session:
    """One request under a key. `revoked` tells its task why it was cancelled."""

    key: str
    task: asyncio.Task[object]
    revoked: bool = False


class Sessions:
    """One task looks after all of them and ends when there are none."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._open: set[Session] = set()
        self._watcher: asyncio.Task[None] | None = None

    def enter(self, key: str) -> Session:
        task = asyncio.current_task()
        assert task is not None, "requests are answered in tasks"
        session = Session(key, task)
        self._open.add(session)
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())
        return session

    def leave(self, session: Session) -> None:
        self._open.discard(session)

    async def check(self) -> None:
        """Cancels the requests of every key that no longer works."""
        for key in {session.key for session in self._open}:
            try:
                await self._keyring.identify(key)
            except Unauthenticated:
                for session in [session for session in self._open if session.key == key]:
                    session.revoked = True
                    session.task.cancel()
            except Unavailable:
                continue  # nobody can have revoked it meanwhile: that is written to the same store

    async def _watch(self) -> None:
        while self._open:
            # Together with the age of what the keyring remembers this stays below one second.
            await asyncio.sleep(RECHECK_S * 0.8)
            await self.check()
