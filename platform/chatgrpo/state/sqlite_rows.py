"""The tables of the embedded store, and each operation on them as statements on an open connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from chatgrpo.errors import Unavailable
from chatgrpo.state.memory import conflict
from chatgrpo.state.store import CorruptState, Head, Key, Log, Record, Write
from chatgrpo.state.wal import enter_wal

SCHEMA_VERSION: Final = 1
MAX_NEWS: Final = 1000
"""Changes told one by one; a watch that is further behind has everything dropped."""
SCHEMA: Final = """
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
HEAD_COLUMNS: Final = "version, data, owner, expires_at, seq"


def append_rows(connection: sqlite3.Connection, key: Key, write: Write) -> int:
    row = connection.execute(
        "SELECT num, version, seq FROM logs WHERE tenant = ? AND space = ? AND id = ?", key
    ).fetchone()
    num, version, based_on = row or (None, -1, 0)
    if based_on != write.based_on:
        raise conflict(key, version)
    head = write.head
    seq = next_seq(connection)
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


def delete_rows(connection: sqlite3.Connection, key: Key) -> int:
    """The commit's seq, 0 when there was nothing."""
    row = connection.execute("SELECT num FROM logs WHERE tenant = ? AND space = ? AND id = ?", key).fetchone()
    if row is None:
        return 0
    connection.execute("DELETE FROM records WHERE log = ?", row)
    connection.execute("DELETE FROM logs WHERE num = ?", row)
    seq = next_seq(connection)
    connection.execute("INSERT INTO forgotten VALUES (?)", (seq,))
    connection.execute("DELETE FROM forgotten WHERE seq <= ?", (seq - 100 * MAX_NEWS,))
    return seq


def next_seq(connection: sqlite3.Connection) -> int:
    return int(connection.execute("UPDATE counter SET seq = seq + 1 RETURNING seq").fetchone()[0])


def tail_rows(connection: sqlite3.Connection, key: Key, count: int, unless: int) -> Log | None:
    """Head first, records up to the head's version after it: what is appended in between is simply not seen."""
    row = connection.execute(
        f"SELECT num, {HEAD_COLUMNS} FROM logs WHERE tenant = ? AND space = ? AND id = ?",  # noqa: S608 (constants only)
        key,
    ).fetchone()
    if row is None:
        return None
    num, *values = row
    head = head_of(*values)
    if head.seq == unless or count <= 0:
        return Log(key, head, ())
    rows = connection.execute(
        "SELECT version, data FROM records WHERE log = ? AND version > ? AND version <= ? ORDER BY version",
        (num, head.version - count, head.version),
    ).fetchall()
    if len(rows) != min(count, head.version + 1):
        raise CorruptState(f"{key.space} {key.id}: records are missing; restore the database from a backup")
    return Log(key, head, tuple(Record(version, data) for version, data in rows))


def head_of(version: int, data: bytes, owner: str, expires_at: float | None, seq: int) -> Head:
    return Head(version=version, data=data, owner=owner, expires_at=expires_at, seq=seq)


def scope(tenant: str, space: str, owner: str | None) -> tuple[str, tuple[str, ...]]:
    if owner is None:
        return "tenant = ? AND space = ?", (tenant, space)
    return "tenant = ? AND space = ? AND owner = ?", (tenant, space, owner)


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Creates the tables once, whichever process comes first."""
    with translated(path):
        enter_wal(connection)
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in SCHEMA.split(";"):
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
