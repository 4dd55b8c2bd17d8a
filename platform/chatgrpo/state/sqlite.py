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
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from chatgrpo.errors import Conflict, PlatformError, Unavailable
from chatgrpo.state.memory import conflict
from chatgrpo.state.store import Change, CorruptState, Cut, Head, Key, Log, OnChange, Record, Write

T = TypeVar("T")

SCHEMA_VERSION: Final = 1
NUM_READERS: Final = 2
MAX_GROUP: Final = 128
"""Writes of one transaction: enough to share the fsync, few enough that readers of the WAL keep up."""
BUSY_POLL_S: Final = 0.001
MAX_NEWS: Final = 1000
"""Changes told one by one; a watch that is further behind has everything dropped."""

_SCHEMA = """
CREATE TABLE counter (id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL);
INSERT INTO counter VALUES (1, 0);
CREATE TABLE logs (
    tenant TEXT NOT NULL, space TEXT NOT NULL, id TEXT NOT NULL, owner TEXT NOT NULL,
    num INTEGER PRIMARY KEY, version INTEGER NOT NULL, seq INTEGER NOT NULL, expires_at REAL, data BLOB NOT NULL,
    UNIQUE (tenant, space, id)
);
CREATE INDEX logs_by_owner ON logs (tenant, space, owner, id);
CREATE INDEX logs_by_seq ON logs (seq);
CREATE INDEX logs_by_expiry ON logs (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE records (
    log INTEGER NOT NULL, version INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (log, version)
) WITHOUT ROWID;
CREATE TABLE forgotten (seq INTEGER PRIMARY KEY);
"""


@dataclass(slots=True)
class _Job:
    """A write that waits for its group commit. `run` raises before it changes anything, or not at all."""

    run: Callable[[sqlite3.Connection], int]
    durable: bool
    future: asyncio.Future[int]
    loop: asyncio.AbstractEventLoop


class SqliteStore:
    """`busy_timeout_s`: how long a write waits for another process's transaction before it raises Unavailable."""

    def __init__(self, path: str | Path, *, busy_timeout_s: float = 10.0) -> None:
        self.path = Path(path)
        self._busy_timeout_s = busy_timeout_s
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        with closing(self._connect()) as connection:
            _prepare(connection, self.path)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="sqlite-read")
        self._writer = threading.Thread(target=self._write_loop, name="sqlite-write", daemon=True)
        self._writer.start()
        self._closed = False
        self._deleted: dict[int, Key] = {}

    async def append(self, key: Key, write: Write, *, durable: bool = True) -> int:
        return await self._submit(lambda connection: _append(connection, key, write), durable=durable)

    async def tail(self, key: Key, count: int, *, unless: int = 0) -> Log | None:
        return await self._read(lambda connection: _tail(connection, key, count, unless))

    async def read(self, key: Key, start: int, stop: int) -> tuple[Record, ...]:
        sql = (
            "SELECT version, data FROM records WHERE log = (SELECT num FROM logs WHERE tenant = ? AND space = ? "
            "AND id = ?) AND version >= ? AND version < ? ORDER BY version"
        )
        rows = await self._read(lambda connection: connection.execute(sql, (*key, start, stop)).fetchall())
        return tuple(Record(version, data) for version, data in rows)

    async def delete(self, key: Key) -> bool:
        seq = await self._submit(lambda connection: _delete(connection, key), durable=True)
        if seq:
            self._deleted[seq] = key
            if len(self._deleted) > MAX_NEWS:
                del self._deleted[next(iter(self._deleted))]
        return seq > 0

    async def list(
        self, tenant: str, space: str, *, owner: str | None = None, before: str | None = None, limit: int = 50
    ) -> Sequence[tuple[Key, Head]]:
        where, values = _scope(tenant, space, owner)
        if before is not None:
            where, values = where + " AND id < ?", (*values, before)
        sql = f"SELECT id, {_HEAD} FROM logs WHERE {where} ORDER BY id DESC LIMIT ?"  # noqa: S608 (constants only)
        rows = await self._read(lambda connection: connection.execute(sql, (*values, limit)).fetchall())
        return [(Key(tenant, space, id_), _head(*head)) for id_, *head in rows]

    async def expired(self, now: float, limit: int) -> Sequence[Key]:
        sql = "SELECT tenant, space, id FROM logs WHERE expires_at <= ? ORDER BY expires_at, tenant, space, id LIMIT ?"
        rows = await self._read(lambda connection: connection.execute(sql, (now, limit)).fetchall())
        return [Key(*row) for row in rows]

    async def cut(self, tenant: str, space: str, *, owner: str | None = None) -> Cut:
        where, values = _scope(tenant, space, owner)
        # One statement reads one snapshot of the database, the counter with the rows.
        sql = f"SELECT id, version FROM logs WHERE {where} UNION ALL SELECT NULL, seq FROM counter"  # noqa: S608
        rows = await self._read(lambda connection: connection.execute(sql, values).fetchall())
        return Cut(seq=rows[-1][1], versions=dict(rows[:-1]))

    async def watch(self, on_change: OnChange) -> SqliteWatch:
        return SqliteWatch(self, self._connect(), on_change)

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
        job = _Job(run, durable, loop.create_future(), loop)
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
                _commit(connection, group, self.path, self._busy_timeout_s)


class SqliteWatch:
    """News from the file itself: `refresh` asks for the data version, and reads what changed only when it moved."""

    is_exact = True

    def __init__(self, store: SqliteStore, connection: sqlite3.Connection, on_change: OnChange) -> None:
        self._store = store
        self._connection = connection
        self._on_change = on_change
        self._data_version = self._ask_data_version()
        (self.applied,) = connection.execute("SELECT seq FROM counter").fetchone()

    def refresh(self) -> None:
        with translated(self._store.path):
            data_version = self._ask_data_version()
            if data_version == self._data_version:
                return
            self._data_version = data_version
            changes, seq = self._changes()
        for change in changes:
            self._on_change(change)
        self.applied = seq

    async def close(self) -> None:
        self._connection.close()

    def _ask_data_version(self) -> int:
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def _changes(self) -> tuple[list[Change | None], int]:
        # One statement, one snapshot: the counter belongs to exactly these rows.
        rows = self._connection.execute(
            "SELECT seq, NULL, NULL, NULL FROM counter "
            "UNION ALL SELECT * FROM (SELECT seq, tenant, space, id FROM logs WHERE seq > :applied LIMIT :most) "
            "UNION ALL SELECT * FROM (SELECT seq, '', '', '' FROM forgotten WHERE seq > :applied LIMIT :most)",
            {"applied": self.applied, "most": MAX_NEWS},
        ).fetchall()
        (newest, *_), *news = rows
        if len(news) >= MAX_NEWS:
            return [None], newest
        changes: list[Change | None] = []
        for seq, *key in news:
            known = Key(*key) if key[0] else self._store._deleted.get(seq)
            # A deletion by another process: its key is not kept anywhere, so everything goes.
            changes.append(Change(known, seq) if known else None)
        return changes, newest


_HEAD: Final = "version, data, owner, expires_at, seq"


def _append(connection: sqlite3.Connection, key: Key, write: Write) -> int:
    row = connection.execute(
        "SELECT num, version, seq FROM logs WHERE tenant = ? AND space = ? AND id = ?", key
    ).fetchone()
    num, version, based_on = row or (None, -1, 0)
    if based_on != write.based_on:
        raise conflict(key, version)
    head = write.head
    seq = _next_seq(connection)
    if num is None:
        columns = "tenant, space, id, owner, version, seq, expires_at, data"
        sql = f"INSERT INTO logs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 (constants only)
        num = connection.execute(sql, (*key, head.owner, head.version, seq, head.expires_at, head.data)).lastrowid
    else:
        sql = "UPDATE logs SET owner = ?, version = ?, seq = ?, expires_at = ?, data = ? WHERE num = ?"
        connection.execute(sql, (head.owner, head.version, seq, head.expires_at, head.data, num))
    rows = [(num, version + 1 + i, data) for i, data in enumerate(write.records)]
    connection.executemany("INSERT INTO records VALUES (?, ?, ?)", rows)
    return seq


def _delete(connection: sqlite3.Connection, key: Key) -> int:
    """The commit's seq, 0 when there was nothing."""
    row = connection.execute("SELECT num FROM logs WHERE tenant = ? AND space = ? AND id = ?", key).fetchone()
    if row is None:
        return 0
    connection.execute("DELETE FROM records WHERE log = ?", row)
    connection.execute("DELETE FROM logs WHERE num = ?", row)
    seq = _next_seq(connection)
    connection.execute("INSERT INTO forgotten VALUES (?)", (seq,))
    connection.execute("DELETE FROM forgotten WHERE seq <= ?", (seq - 100 * MAX_NEWS,))
    return seq


def _next_seq(connection: sqlite3.Connection) -> int:
    return int(connection.execute("UPDATE counter SET seq = seq + 1 RETURNING seq").fetchone()[0])


def _tail(connection: sqlite3.Connection, key: Key, count: int, unless: int) -> Log | None:
    """Head first, records up to the head's version after it: what is appended in between is simply not seen."""
    row = connection.execute(
        f"SELECT num, {_HEAD} FROM logs WHERE tenant = ? AND space = ? AND id = ?",  # noqa: S608 (constants only)
        key,
    ).fetchone()
    if row is None:
        return None
    num, *values = row
    head = _head(*values)
    if head.seq == unless or count <= 0:
        return Log(key, head, ())
    rows = connection.execute(
        "SELECT version, data FROM records WHERE log = ? AND version > ? AND version <= ? ORDER BY version",
        (num, head.version - count, head.version),
    ).fetchall()
    if len(rows) != min(count, head.version + 1):
        raise CorruptState(f"{key.space} {key.id}: records are missing; restore the database from a backup")
    return Log(key, head, tuple(Record(version, data) for version, data in rows))


def _head(version: int, data: bytes, owner: str, expires_at: float | None, seq: int) -> Head:
    return Head(version=version, data=data, owner=owner, expires_at=expires_at, seq=seq)


def _scope(tenant: str, space: str, owner: str | None) -> tuple[str, tuple[str, ...]]:
    if owner is None:
        return "tenant = ? AND space = ?", (tenant, space)
    return "tenant = ? AND space = ? AND owner = ?", (tenant, space, owner)


def _commit(connection: sqlite3.Connection, group: Sequence[_Job], path: Path, busy_timeout_s: float) -> None:
    """Runs the jobs in one transaction and answers them once it is on disk."""
    outcomes: list[tuple[_Job, int | PlatformError]] = []
    try:
        with translated(path):
            connection.execute(f"PRAGMA synchronous = {'FULL' if any(job.durable for job in group) else 'NORMAL'}")
            _begin(connection, busy_timeout_s)
            for job in group:
                try:
                    outcomes.append((job, job.run(connection)))
                except Conflict as error:
                    outcomes.append((job, error))
            connection.execute("COMMIT")
    except PlatformError as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if len(group) > 1:
            # One of them may be at fault: each gets a transaction of its own.
            for job in group:
                _commit(connection, [job], path, busy_timeout_s)
            return
        outcomes = [(group[0], error)]
    for job, outcome in outcomes:
        _answer(job, outcome)


def _begin(connection: sqlite3.Connection, timeout_s: float) -> None:
    """Takes the write lock. SQLite's own waiting pauses for up to 100 ms at a time, which starves writers of other
    processes while one of them is busy; a commit takes a few milliseconds, so that is how often we ask."""
    connection.execute("PRAGMA busy_timeout = 0")
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= deadline:
                raise
            time.sleep(BUSY_POLL_S)


def _answer(job: _Job, outcome: int | PlatformError) -> None:
    def resolve() -> None:
        if job.future.done():
            return
        if isinstance(outcome, PlatformError):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)

    with suppress(RuntimeError):  # the loop that asked is gone; the write stands
        job.loop.call_soon_threadsafe(resolve)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Creates the tables once, whichever process comes first."""
    with translated(path):
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    if version not in {0, SCHEMA_VERSION}:
        raise CorruptState(f"{path} has schema {version}, this release reads {SCHEMA_VERSION}; use the newer release")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """sqlite3's errors as the platform's: what may pass is Unavailable, what is broken is CorruptState."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if "locked" in text or "busy" in text:
            raise Unavailable(f"{path} is locked by another process for too long; retry") from error
        if "full" in text:
            raise Unavailable(f"no space left for {path}; free some and retry", 30.0) from error
        raise Unavailable(f"{path} cannot be used: {text}; check the disk and its permissions", 30.0) from error
    except sqlite3.DatabaseError as error:
        raise CorruptState(f"{path} is damaged: {error}; restore it from a backup") from error
