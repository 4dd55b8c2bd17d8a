"""The backends that every contract runs on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from ulid import ULID

from chatgrpo.state.memory import MemoryStore
from chatgrpo.state.redis import RedisStore
from chatgrpo.state.sqlite import SqliteStore
from chatgrpo.state.store import Store
from tests.redis_server import RedisServer

BACKENDS = ("memory", "sqlite", "redis")


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of one test's own, which may kill it."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder).start()
    yield server
    server.kill()


@pytest.fixture(params=BACKENDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_backend(request, tmp_path)
    yield opened
    await opened.close()


async def open_backend(request: pytest.FixtureRequest, folder: Path) -> Store:
    """A store with nothing in it."""
    if request.param == "memory":
        return MemoryStore()
    if request.param == "sqlite":
        return SqliteStore(folder / "state.db")
    # Tests share the server; a prefix of one's own is an empty store.
    return await RedisStore.open(request.getfixturevalue("redis_url"), prefix=f"{ULID()}:")
