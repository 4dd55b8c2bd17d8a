"""News of commits by other processes, from the file that they share."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

from chatgrpo.state.sqlite_rows import MAX_NEWS, translated
from chatgrpo.state.store import Change, Key, OnChange


class SqliteWatch:
    """`refresh` asks for the data version, and reads what changed only when it moved. `deleted` names what this process
    deleted, by commit: the file keeps no ids of deleted logs."""

    is_exact = True

    def __init__(
        self, path: Path, deleted: Mapping[int, Key], connection: sqlite3.Connection, on_change: OnChange
    ) -> None:
        self._path = path
        self._deleted = deleted
        self._connection = connection
        self._on_change = on_change
        self._data_version = self._ask_data_version()
        (self.applied,) = connection.execute("SELECT seq FROM counter").fetchone()

    def refresh(self) -> None:
        with translated(self._path):
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
            known = Key(*key) if key[0] else self._deleted.get(seq)
            # A deletion by another process: its key is not kept anywhere, so everything goes.
            changes.append(Change(known, seq) if known else None)
        return changes, newest
