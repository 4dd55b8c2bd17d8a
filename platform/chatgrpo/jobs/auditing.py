"""Every transition of a job in the platform's audit trail: after it was stored, in order, none left out.

The store remembers how far the trail has come, so what happened while the trail could not be written, or just before a
crash, is recorded later. A crash between the two repeats entries; their `seq` tells.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from chatgrpo.audit import AuditSink
from chatgrpo.jobs.store import JobStore

WHO = "scheduler"
BATCH = 256


class TransitionAudit:
    """`open_trail` is awaited at the first use, and again after it failed."""

    def __init__(self, store: JobStore, open_trail: Callable[[], Awaitable[AuditSink]]) -> None:
        self._store, self._open_trail = store, open_trail
        self._trail: AuditSink | None = None
        self._turn = asyncio.Lock()

    async def catch_up(self) -> None:
        """Records what is not in the trail yet. Raises what the trail raises; the rest is for the next call."""
        async with self._turn:
            while rows := self._store.unaudited(BATCH):
                if self._trail is None:
                    self._trail = await self._open_trail()
                # The trail writes in the order of the calls, all that are waiting at once.
                await asyncio.gather(
                    *(
                        self._trail.record(
                            who=WHO,
                            what=f"job.{row['to']}",
                            tenant=row["owner"],
                            target=f"/api/v2/jobs/{row['job_id']}",
                            facts={
                                "seq": row["seq"],
                                "at": row["at"],
                                "from": row["from"],
                                # What follows in brackets is the run's own words.
                                "cause": row["cause"].partition(" (")[0],
                            },
                        )
                        for row in rows
                    )
                )
                self._store.mark_audited(rows[-1]["seq"])
