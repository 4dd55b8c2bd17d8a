"""Jobs on disk: the newest record of each, and every transition with its time and cause, in one SQLite file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chatgrpo.errors import NotFound
from chatgrpo.jobs.job import Event, Job, JobState
from chatgrpo.jobs.scheduling.pools import Usage

Rows = list[dict[str, Any]]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, state TEXT NOT NULL, submitted_at REAL NOT NULL, record TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state);
CREATE INDEX IF NOT EXISTS jobs_by_time ON jobs (submitted_at DESC, id DESC);
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, job_id TEXT NOT NULL, at REAL NOT NULL,
    from_state TEXT, to_state TEXT NOT NULL, cause TEXT NOT NULL, record TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS usage (owner TEXT PRIMARY KEY, average REAL NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS audited (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), seq INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_job ON events (job_id, seq);
"""


class JobStore:
    """One writer (the scheduler). What `save` and `append` return from is durable: WAL with a sync on each commit."""

    def __init__(self, path: Path | str) -> None:
        if path != ":memory:":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        # The actor's event loop may hop threads; calls never overlap because the actor runs them one at a time.
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA busy_timeout=5000")
        self._db.executescript(_SCHEMA)

    def append(self, events: Iterable[Event]) -> None:
        """Stores transitions and the records after them, all or none."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for event in events:
                record = _dump(event.job)
                self._put(event.job, record)
                self._db.execute(
                    "INSERT INTO events (job_id, at, from_state, to_state, cause, record) VALUES (?, ?, ?, ?, ?, ?)",
                    (event.job.id, event.at, event.from_state, event.job.state, event.cause, record),
                )
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def save(self, job: Job) -> None:
        """Stores a record whose state did not change (progress)."""
        self._put(job, _dump(job))

    def get(self, job_id: str, *, owner: str | None = None) -> Job:
        """Raises NotFound for an unknown id, and for a job of another owner when `owner` is given."""
        row = self._db.execute("SELECT owner, record FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None or (owner is not None and row[0] != owner):
            raise NotFound(f"no job {job_id}; GET /api/v2/jobs lists yours")
        return _load(row[1])

    def find(self, job_id: str) -> Job | None:
        row = self._db.execute("SELECT record FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return _load(row[0]) if row else None

    def list(
        self,
        *,
        owner: str | None = None,
        state: JobState | None = None,
        limit: int = 50,
        sweeps_only: bool = False,
    ) -> list[Job]:
        """Newest first."""
        rows = self._db.execute(
            "SELECT record FROM jobs WHERE (?1 IS NULL OR owner = ?1) AND (?2 IS NULL OR state = ?2) "
            "AND (NOT ?4 OR json_extract(record, '$.config.sweep') IS NOT NULL) "
            "ORDER BY submitted_at DESC, id DESC LIMIT ?3",
            (owner, state, limit, sweeps_only),
        )
        return [_load(row[0]) for row in rows]

    def unfinished(self) -> tuple[Job, ...]:
        """Every job that is not in a terminal state, oldest first."""
        rows = self._db.execute(
            "SELECT record FROM jobs WHERE state NOT IN ('succeeded', 'failed', 'cancelled') ORDER BY submitted_at, id"
        )
        return tuple(_load(row[0]) for row in rows)

    def used_since(self, since: float) -> dict[str, tuple[float, float]]:
        """CPU-seconds and GPU-seconds of the jobs that ended at or after `since`, summed by owner."""
        rows = self._db.execute(
            "SELECT owner, SUM(json_extract(record, '$.cpu_seconds')), SUM(json_extract(record, '$.gpu_seconds')) "
            "FROM jobs WHERE state IN ('succeeded', 'failed', 'cancelled') "
            "AND json_extract(record, '$.ended_at') >= ? GROUP BY owner",
            (since,),
        )
        return {owner: (float(cpu), float(gpu)) for owner, cpu, gpu in rows}

    def usage(self) -> Usage | None:
        """Past use of every owner for fair sharing, as it was last saved; None if it never was."""
        rows = self._db.execute("SELECT owner, average, at FROM usage").fetchall()
        return Usage(rows[0][2], {owner: average for owner, average, _ in rows}) if rows else None

    def save_usage(self, usage: Usage) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("DELETE FROM usage")
        rows = [(owner, average, usage.at) for owner, average in usage.averages.items()]
        self._db.executemany("INSERT INTO usage VALUES (?, ?, ?)", rows)
        self._db.execute("COMMIT")

    def counts(self) -> dict[str, int]:
        return dict(self._db.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state").fetchall())

    def events(self, job_id: str) -> Rows:
        """A job's transitions, oldest first: {"at", "from", "to", "cause"}."""
        rows = self._db.execute(
            "SELECT at, from_state, to_state, cause FROM events WHERE job_id = ? ORDER BY seq", (job_id,)
        )
        return [{"at": at, "from": from_state, "to": to, "cause": cause} for at, from_state, to, cause in rows]

    def unaudited(self, limit: int) -> Rows:
        """Transitions after the one that `mark_audited` was last told of, oldest first: {"seq", "job_id", "owner",
        "at", "from", "to", "cause"}."""
        rows = self._db.execute(
            "SELECT seq, job_id, owner, at, from_state, to_state, cause FROM events JOIN jobs ON jobs.id = job_id "
            "WHERE seq > COALESCE((SELECT seq FROM audited), 0) ORDER BY seq LIMIT ?",
            (limit,),
        )
        return [dict(zip(("seq", "job_id", "owner", "at", "from", "to", "cause"), row, strict=True)) for row in rows]

    def mark_audited(self, seq: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO audited (only_row, seq) VALUES (1, ?)", (seq,))

    def replay(self) -> dict[str, Job]:
        """Every job as the event log alone tells it: deterministic, and equal to the records but for progress."""
        rows = self._db.execute("SELECT job_id, record FROM events ORDER BY seq")
        return {job_id: _load(record) for job_id, record in rows}

    def delete(self, job_id: str) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("DELETE FROM events WHERE job_id = ?", (job_id,))
        self._db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
        self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()

    def _put(self, job: Job, record: str) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO jobs (id, owner, state, submitted_at, record) VALUES (?, ?, ?, ?, ?)",
            (job.id, job.owner, job.state, job.submitted_at, record),
        )


def _dump(job: Job) -> str:
    return json.dumps(job.to_json(), separators=(",", ":"))


def _load(record: str) -> Job:
    return Job.from_json(json.loads(record))
