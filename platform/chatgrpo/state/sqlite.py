"""The embedded store: one SQLite file in WAL mode, shared by any number of processes on one machine.

Writes queue for one thread, which commits all that wait in one transaction (group commit): one fsync serves them all.
Durable writes commit with `synchronous=FULL`, the others with NORMAL: those survive `kill -9`, but the newest may be
lost when the machine loses power. Reads run beside writers on connections of their own. Other processes' commits are
noticed by `PRAGMA data_version`, which costs microseconds, so a cached copy can be known to be the newest.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Final, TypeVar

from chatgrpo.errors import Unavailable
from chatgrpo.state.sqlite_commits import Job, commit
from chatgrpo.state.sqlite_news import SqliteWatch
from chatgrpo.state.sqlite_rows import (
    HEAD_COLUMNS,
    MAX_NEWS,
    append_rows,
    delete_rows,
    head_of,
    prepare,
    scope,
    tail_rows,
    translated,
)
from chatgrpo.state.store import Cut, Head, Key, Log, OnChange, Record, Write

T = TypeVar("T")

NUM_READERS: Final = 2
MAX_GROUP: Final = 128
"""Writes of one transaction: enough to share the fsync, few enough that readers of the WAL keep up."""


class SqliteStore:
    """`busy_timeout_s`: how long a write waits for another process's transaction before it raises Unavailable."""

    def __init__(self, path: str | Path, *, busy_timeout_s: float = 10.0) -> None:
        self.path = Path(path)
        self._busy_timeout_s = busy_timeout_s
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        with closing(self._connect()) as connection:
            prepare(connection, self.path)
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="sqlite-read")
        self._writer = threading.Thread(target=self._write_loop, name="sqlite-write", daemon=True)
        self._writer.start()
        self._closed = False
        self._deleted: dict[int, Key] = {}

    async def append(self, key: Key, write: Write, *, durable: bool = True) -> int:
        return await self._submit(lambda connection: append_rows(connection, key, write), durable=durable)

    async def tail(self, key: Key, count: int, *, unless: int = 0) -> Log | None:
        return await self._read(lambda connection: tail_rows(connection, key, count, unless))

    async def read(self, key: Key, start: int, stop: int) -> tuple[Record, ...]:
        sql = (
            "SELECT version, data FROM records WHERE log = (SELECT num FROM logs WHERE tenant = ? AND space = ? "
            "AND id = ?) AND version >= ? AND version < ? ORDER BY version"
        )
        rows = await self._read(lambda connection: connection.execute(sql, (*key, start, stop)).fetchall())
        return tuple(Record(version, data) for version, data in rows)

    async def delete(self, key: Key) -> bool:
        seq = await self._submit(lambda connection: delete_rows(connection, key), durable=True)
        if seq:
            self._deleted[seq] = key
            if len(self._deleted) > MAX_NEWS:
                del self._deleted[next(iter(self._deleted))]
        return seq > 0

    async def list(
        self, tenant: str, space: str, *, owner: str | None = None, before: str | None = None, limit: int = 50
    ) -> Sequence[tuple[Key, Head]]:
        where, values = scope(tenant, space, owner)
        if before is not None:
            where, values = where + " AND id < ?", (*values, before)
        sql = f"SELECT id, {HEAD_COLUMNS} FROM logs WHERE {where} ORDER BY id DESC LIMIT ?"  # noqa: S608 (constants only)
        rows = await self._read(lambda connection: connection.execute(sql, (*values, limit)).fetchall())
        return [(Key(tenant, space, id_), head_of(*head)) for id_, *head in rows]

    async def expired(self, now: float, limit: int) -> Sequence[Key]:
        sql = "SELECT tenant, space, id FROM logs WHERE expires_at <= ? ORDER BY expires_at, tenant, space, id LIMIT ?"
        rows = await self._read(lambda connection: connection.execute(sql, (now, limit)).fetchall())
        return [Key(*row) for row in rows]

    async def cut(self, tenant: str, space: str, *, owner: str | None = None) -> Cut:
        where, values = scope(tenant, space, owner)
        # One statement reads one snapshot of the database, the counter with the rows.
        sql = f"SELECT id, version FROM logs WHERE {where} UNION ALL SELECT NULL, seq FROM counter"  # noqa: S608
        rows = await self._read(lambda connection: connection.execute(sql, values).fetchall())
        return Cut(seq=rows[-1][1], versions=dict(rows[:-1]))

    async def watch(self, on_change: OnChange) -> SqliteWatch:
        return SqliteWatch(self.path, self._deleted, self._connect(), on_change)

    async def ping(self) -> None:
        await self._read(lambda connection: connection.execute("SELECT seq FROM counter").fetchone())

    async def close(self) -> None:
        """Commits what is queued, then lets go of the file."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._readers.shutdown)
        for connection in self._connections:
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        with translated(self.path):
            connection = sqlite3.connect(
                self.path, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False
            )
            # Deleted text is overwritten, not merely unlinked.
            connection.execute("PRAGMA secure_delete = ON")
            return connection

    async def _submit(self, run: Callable[[sqlite3.Connection], int], *, durable: bool) -> int:
        if self._closed:
            raise Unavailable("the store is closed")
        loop = asyncio.get_running_loop()
        job = Job(run, durable, loop.create_future(), loop)
        self._jobs.put(job)
        # A caller that gives up must not leave the others of its group without an answer.
        return await asyncio.shield(job.future)

    async def _read(self, run: Callable[[sqlite3.Connection], T]) -> T:
        def read() -> T:
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = self._connect()
                self._connections.append(connection)
            with translated(self.path):
                return run(connection)

        if self._closed:
            raise Unavailable("the store is closed")
        return await asyncio.get_running_loop().run_in_executor(self._readers, read)

    def _write_loop(self) -> None:
        with closing(self._connect()) as connection:
            while (first := self._jobs.get()) is not None:
                group = [first]
                while len(group) < MAX_GROUP and not self._jobs.empty():
                    job = self._jobs.get()
                    if job is None:
                        self._jobs.put(None)
                        break
                    group.append(job)
                commit(connection, group, self.path, self._busy_timeout_s)
