"""Counters of limits in a SQLite file that all replicas on a machine share."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from chatgrpo.clock import Clock
from chatgrpo.errors import Unavailable
from chatgrpo.gateway.counters import LEASE_S
from chatgrpo.gateway.limits import SLOTS, Meter, Reading, Verdict, decide, read_slots, slot_of
from chatgrpo.state.wal import enter_wal

T = TypeVar("T")

LOCK_TIMEOUT_S = 2.0


class SqliteCounters:
    """Exact for all processes of a machine. Counts survive `kill -9` of any of them; they are not synced to disk,
    because after a power cut the windows are over anyhow.

    A decision takes some 50 microseconds, half of what handing it to a thread would cost: it is made on the event loop.
    Only while another process holds the lock does a thread wait for it."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._clock = clock
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="limits")
        self._connection: sqlite3.Connection | None = None
        self._num_taken = self._num_waiting = 0

    async def take(self, meters: Sequence[Meter], *, lease: str) -> Verdict:
        return await self._run(lambda db: self._take(db, meters, lease))

    async def give_back(self, meter: Meter, amount: int, *, taken_at: float) -> None:
        values = (amount, meter.key, slot_of(taken_at, meter.window_s))
        await self._run(lambda db: db.execute("UPDATE slots SET n = n - ? WHERE key = ? AND slot = ?", values))

    async def release(self, meters: Sequence[Meter], *, lease: str) -> None:
        keys = [(meter.key, lease) for meter in meters if meter.window_s == 0]
        if keys:
            await self._run(lambda db: db.executemany("DELETE FROM leases WHERE key = ? AND lease = ?", keys))

    async def close(self) -> None:
        self._thread.shutdown()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is not None and self._num_waiting == 0:
            try:
                return _do(self._connection, work)
            except sqlite3.OperationalError as error:
                if not _is_busy(error):
                    raise self._unusable(error) from error
            except sqlite3.Error as error:
                raise self._unusable(error) from error
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._wait_and_do, work)
        finally:
            self._num_waiting -= 1

    def _wait_and_do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                self._connection = self._connection or _open(self._path)
                return _do(self._connection, work)
            except sqlite3.Error as error:
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise self._unusable(error) from error
            time.sleep(0.001)

    def _unusable(self, error: sqlite3.Error) -> Unavailable:
        return Unavailable(f"the limits' counters in {self._path} cannot be used: {error}")

    def _take(self, db: sqlite3.Connection, meters: Sequence[Meter], lease: str) -> Verdict:
        # The time is read under the lock: requests count in the order in which they are admitted.
        now = self._clock.now()
        verdict = decide(meters, _read_all(db, meters, now), now=now, lease=lease)
        if verdict.is_admitted:
            _count_all(db, meters, now, lease)
        self._num_taken += 1
        if self._num_taken % 1000 == 0:
            db.execute("DELETE FROM slots WHERE ends <= ?", (now,))
        return verdict


def _is_busy(error: sqlite3.Error) -> bool:
    # The low byte is the kind; there is more than one way of being busy.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _do(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """Raises an OperationalError (SQLITE_BUSY) at once while somebody else writes."""
    db.execute("BEGIN IMMEDIATE")
    try:
        done = work(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return done


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=2.0, isolation_level=None, check_same_thread=False)
    enter_wal(db)
    db.execute("PRAGMA synchronous = OFF")
    db.execute(
        "CREATE TABLE IF NOT EXISTS slots (key TEXT, slot INTEGER, n INTEGER, ends REAL, PRIMARY KEY (key, slot)) "
        "WITHOUT ROWID"
    )
    db.execute("CREATE INDEX IF NOT EXISTS slots_by_end ON slots (ends)")
    db.execute("CREATE TABLE IF NOT EXISTS leases (key TEXT, lease TEXT, ends REAL, PRIMARY KEY (key, lease))")
    db.execute("PRAGMA busy_timeout = 0")
    return db


def _read_all(db: sqlite3.Connection, meters: Sequence[Meter], now: float) -> list[Reading]:
    """One statement for all windows: each costs more than what it reads."""
    windows = [meter for meter in meters if meter.window_s]
    slots: dict[str, dict[int, int]] = {meter.key: {} for meter in windows}
    if windows:
        sql = _SLOTS_OF[len(windows)] if len(windows) < len(_SLOTS_OF) else _slots_of(len(windows))
        first_slots = [(meter.key, slot_of(now, meter.window_s) - SLOTS) for meter in windows]
        for key, slot, count in db.execute(sql, [value for pair in first_slots for value in pair]):
            slots[key][slot] = count
    return [
        read_slots(slots[meter.key], meter, now) if meter.window_s else _read_leases(db, meter, now) for meter in meters
    ]


def _slots_of(num_windows: int) -> str:
    return " UNION ALL ".join(["SELECT key, slot, n FROM slots WHERE key = ? AND slot >= ?"] * num_windows)


_SLOTS_OF = ["", *(_slots_of(number) for number in range(1, 9))]


def _read_leases(db: sqlite3.Connection, meter: Meter, now: float) -> Reading:
    db.execute("DELETE FROM leases WHERE key = ? AND ends <= ?", (meter.key, now))
    sql = "SELECT COUNT(*), COALESCE(MIN(ends), 0) FROM leases WHERE key = ?"
    used, first = db.execute(sql, (meter.key,)).fetchone()
    return Reading(used=used, oldest=first)


def _count_all(db: sqlite3.Connection, meters: Sequence[Meter], now: float, lease: str) -> None:
    rows = [
        (meter.key, slot_of(now, meter.window_s), meter.cost, now + 2 * meter.window_s)
        for meter in meters
        if meter.window_s
    ]
    db.executemany("INSERT INTO slots VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n", rows)
    leases = [(meter.key, lease, now + LEASE_S) for meter in meters if not meter.window_s]
    if leases:
        db.executemany("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", leases)
