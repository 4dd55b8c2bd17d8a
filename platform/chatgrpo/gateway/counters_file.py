"""Counters of limits in files that all replicas on a machine share."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from chatgrpo.clock import Clock
from chatgrpo.errors import Unavailable
from chatgrpo.gateway.counters import LEASE_S
from chatgrpo.gateway.limits import Meter, Reading, Verdict, decide
from chatgrpo.gateway.window_table import TableFull, WindowTable
from chatgrpo.state.wal import enter_wal

T = TypeVar("T")

LOCK_TIMEOUT_S: Final = 2.0
NUM_TRIES: Final = 16
"""For as long as another process that is not interrupted holds the lock."""


class FileCounters:
    """Exact for all processes of a machine. Counts survive `kill -9` of any of them; they are not synced to disk,
    because after a power cut the windows are over anyhow.

    One lock is held for a decision, some ten microseconds: a tenth of what handing it to a thread would cost, so it is
    made on the event loop. Only while another process holds the lock does a thread wait for it. What is under way at
    once (rules with `parallel`) lies in a small database beside the windows, under the same lock."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="limits")
        self._lock: int | None = None
        self._windows: WindowTable | None = None
        self._leases: sqlite3.Connection | None = None
        self._num_waiting = 0

    async def take(self, meters: Sequence[Meter], *, lease: str) -> Verdict:
        if self._windows is not None and not self._num_waiting and self._try_lock():
            try:
                return self._guarded(lambda: self._take(meters, lease))
            finally:
                self._unlock()
        return await self._in_thread(lambda: self._take(meters, lease))

    async def give_back(self, meter: Meter, amount: int, *, taken_at: float) -> None:
        def work() -> None:
            assert self._windows is not None, "opened under the lock"
            self._windows.give_back(meter, amount, taken_at=taken_at, now=self._clock.now())

        await self._run(work)

    async def release(self, meters: Sequence[Meter], *, lease: str) -> None:
        keys = [(meter.key, lease) for meter in meters if meter.window_s == 0]
        if keys:
            sql = "DELETE FROM leases WHERE key = ? AND lease = ?"
            await self._run(lambda: self._database().executemany(sql, keys))

    async def close(self) -> None:
        self._thread.shutdown()
        if self._windows is not None:
            self._windows.close()
        if self._leases is not None:
            self._leases.close()
        if self._lock is not None:
            os.close(self._lock)
        self._windows = self._leases = self._lock = None

    async def _run(self, work: Callable[[], T]) -> T:
        if self._windows is not None and not self._num_waiting and self._try_lock():
            try:
                return self._guarded(work)
            finally:
                self._unlock()
        return await self._in_thread(work)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._wait_and_do, work)
        finally:
            self._num_waiting -= 1

    def _wait_and_do(self, work: Callable[[], T]) -> T:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        try:
            self._open()
        except OSError as error:
            raise Unavailable(f"the limits' counters in {self._path} cannot be used: {error}") from error
        while not self._try_lock():
            if time.monotonic() > deadline:
                raise Unavailable(f"the limits' counters in {self._path} are locked by another process")
            time.sleep(0.0005)
        try:
            return self._guarded(work)
        finally:
            self._unlock()

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except TableFull:
            raise Unavailable("more callers are being counted than there is room for; use Redis") from None
        except sqlite3.Error as error:
            raise Unavailable(f"the limits' counters in {self._path} cannot be used: {error}") from error

    def _open(self) -> None:
        if self._windows is None:
            windows = WindowTable(self._path)
            self._lock = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            self._windows = windows

    def _try_lock(self) -> bool:
        assert self._lock is not None, "opened with the windows"
        for _ in range(NUM_TRIES):
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return True
        return False

    def _unlock(self) -> None:
        assert self._lock is not None, "locked before"
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _take(self, meters: Sequence[Meter], lease: str) -> Verdict:
        windows = self._windows
        assert windows is not None, "opened under the lock"
        # The time is read under the lock: requests count in the order in which they are admitted.
        now = self._clock.now()
        readings = [windows.read(m, now) if m.window_s else self._read_leases(m, now) for m in meters]
        verdict = decide(meters, readings, now=now, lease=lease)
        if verdict.is_admitted:
            for meter in meters:
                if meter.window_s:
                    windows.count(meter, now)
                else:
                    held = (meter.key, lease, now + LEASE_S)
                    self._database().execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", held)
        return verdict

    def _read_leases(self, meter: Meter, now: float) -> Reading:
        db = self._database()
        db.execute("DELETE FROM leases WHERE key = ? AND ends <= ?", (meter.key, now))
        sql = "SELECT COUNT(*), COALESCE(MIN(ends), 0) FROM leases WHERE key = ?"
        used, first = db.execute(sql, (meter.key,)).fetchone()
        return Reading(used=used, oldest=first)

    def _database(self) -> sqlite3.Connection:
        """Nobody else writes while the lock is held, so no statement waits."""
        if self._leases is None:
            path = self._path.with_name(f"{self._path.name}.leases")
            db = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            enter_wal(db)
            db.execute("PRAGMA synchronous = OFF")
            db.execute("CREATE TABLE IF NOT EXISTS leases (key TEXT, lease TEXT, ends REAL, PRIMARY KEY (key, lease))")
            self._leases = db
        return self._leases
