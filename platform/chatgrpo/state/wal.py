"""Turning on SQLite's write-ahead log in a file that several processes open at the same moment."""

from __future__ import annotations

import sqlite3

import stamina


def enter_wal(connection: sqlite3.Connection, *, timeout_s: float = 5.0) -> None:
    """The first opener changes the file, which takes it whole for a moment; the others are told "locked" at once,
    whatever their busy timeout, and try again here. Raises sqlite3.OperationalError after `timeout_s`."""
    for attempt in stamina.retry_context(
        on=_is_locked, attempts=None, timeout=timeout_s, wait_initial=0.005, wait_max=0.1, wait_jitter=0.005
    ):
        with attempt:
            connection.execute("PRAGMA journal_mode = WAL")


def _is_locked(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
