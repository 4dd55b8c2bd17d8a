"""Group commit: the writes that wait, in one transaction, answered once it is on disk."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chatgrpo.errors import Conflict, PlatformError
from chatgrpo.state.sqlite_rows import translated

BUSY_POLL_S: Final = 0.001


@dataclass(slots=True)
class Job:
    """A write that waits for its group commit. `run` raises before it changes anything, or not at all."""

    run: Callable[[sqlite3.Connection], int]
    durable: bool
    future: asyncio.Future[int]
    loop: asyncio.AbstractEventLoop


def commit(connection: sqlite3.Connection, group: Sequence[Job], path: Path, busy_timeout_s: float) -> None:
    """Runs the jobs in one transaction and answers them once it is on disk."""
    outcomes: list[tuple[Job, int | PlatformError]] = []
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
                commit(connection, [job], path, busy_timeout_s)
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


def _answer(job: Job, outcome: int | PlatformError) -> None:
    def resolve() -> None:
        if job.future.done():
            return
        if isinstance(outcome, PlatformError):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)

    with suppress(RuntimeError):  # the loop that asked is gone; the write stands
        job.loop.call_soon_threadsafe(resolve)
