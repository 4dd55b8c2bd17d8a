from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from chatgrpo.state.wal import enter_wal


def test_many_openers_of_a_new_file_all_get_in(tmp_path: Path) -> None:
    together = Barrier(8)

    def open_at_once(_: int) -> str:
        connection = sqlite3.connect(tmp_path / "new.db", timeout=2.0)
        together.wait()
        enter_wal(connection)
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        connection.close()
        return str(mode)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(open_at_once, range(8))) == {"wal"}
