"""Damaged files, full disks, other processes' locks: a clear error, and never a lost acknowledged write."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from chatgrpo.errors import Unavailable
from chatgrpo.messages import user
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.opening import open_conversations
from chatgrpo.state.sqlite import SqliteStore
from chatgrpo.state.store import CorruptState
from chatgrpo.state.tiered import TieredStore

TENANT = "t"


async def begin(path: Path, count: int = 3) -> None:
    conversations = await open_conversations(path)
    await conversations.create("x", tenant=TENANT)
    for number in range(count):
        await conversations.append("x", [user(str(number))], tenant=TENANT)
    await conversations.close()


async def test_a_flipped_bit_in_a_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    await begin(path)
    database = sqlite3.connect(path)
    (data,) = database.execute(
        "SELECT data FROM records WHERE version = 2 AND log = (SELECT num FROM logs WHERE id = 'x')"
    ).fetchone()
    flipped = data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]
    database.execute("UPDATE records SET data = ? WHERE data = ?", (flipped, data))
    database.commit()
    database.close()
    conversations = await open_conversations(path)
    with pytest.raises(CorruptState, match="conversation x: record 2 cannot be read"):
        await conversations.read_recent("x", tenant=TENANT)
    window = await conversations.read_recent("x", tenant=TENANT, max_messages=1)
    assert window.messages == [user("2")]
    await conversations.close()


async def test_a_missing_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    await begin(path)
    database = sqlite3.connect(path)
    database.execute("DELETE FROM records WHERE version = 1 AND log = (SELECT num FROM logs WHERE id = 'x')")
    database.commit()
    database.close()
    conversations = await open_conversations(path)
    with pytest.raises(CorruptState, match="records are missing"):
        await conversations.read_recent("x", tenant=TENANT)
    await conversations.close()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(CorruptState, match="is damaged"):
        await open_conversations(path)


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    await begin(path)
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(CorruptState, match="schema 99"):
        await open_conversations(path)


class SmallDisk(SqliteStore):
    """A file that may not grow beyond 40 pages."""

    def _connect(self) -> sqlite3.Connection:
        connection = super()._connect()
        connection.execute("PRAGMA max_page_count = 40")
        return connection


async def test_a_full_disk_refuses_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    tiers = TieredStore(SmallDisk(path))
    await tiers.start()
    conversations = Conversations(tiers)
    await conversations.create("x", tenant=TENANT)
    acknowledged = 0

    async def fill() -> None:
        nonlocal acknowledged
        while True:
            await conversations.append("x", [user("x" * 1000)], tenant=TENANT)
            acknowledged += 1

    with pytest.raises(Unavailable, match="no space left"):
        await fill()
    assert acknowledged > 10
    assert (await conversations.get("x", tenant=TENANT)).version == acknowledged
    await conversations.close()
    again = await open_conversations(path)
    assert (await again.append("x", [user("y")], tenant=TENANT)).version == acknowledged + 1
    await again.close()


async def test_a_lock_held_too_long_is_unavailable_and_passes(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    await begin(path, 0)
    tiers = TieredStore(SqliteStore(path, busy_timeout_s=0.05))
    await tiers.start()
    conversations = Conversations(tiers)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked by another process"):
        await conversations.append("x", [user("1")], tenant=TENANT)
    assert (await conversations.get("x", tenant=TENANT)).version == 0
    other.execute("ROLLBACK")
    other.close()
    await conversations.append("x", [user("1")], tenant=TENANT)
    await conversations.close()


async def test_one_bad_write_does_not_take_its_group_down(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state.db")

    def broken(_: sqlite3.Connection) -> int:
        raise sqlite3.OperationalError("no such table: nowhere")

    conversations = Conversations(TieredStore(store))
    good = [conversations.create(f"c{number}", tenant=TENANT) for number in range(5)]
    outcomes = await asyncio.gather(*good, store._submit(broken, durable=True), return_exceptions=True)
    assert [isinstance(outcome, Exception) for outcome in outcomes] == [False] * 5 + [True]
    assert len((await conversations.list(tenant=TENANT)).conversations) == 5
    await store.close()


async def test_deleted_text_is_overwritten_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    conversations = await open_conversations(path)
    await conversations.create("x", tenant=TENANT)
    await conversations.append("x", [user("a very secret sentence")], tenant=TENANT)
    await conversations.delete("x", tenant=TENANT)
    await conversations.close()
    assert b"a very secret sentence" not in path.read_bytes()
    assert not path.with_name("state.db-wal").exists()
