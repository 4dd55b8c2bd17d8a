"""Tells the monitor, every few seconds, what this process counts. Beside the requests, never in their way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from ulid import ULID

from chatgrpo.errors import PlatformError
from chatgrpo.monitoring.catalog import REPORTS_DROPPED
from chatgrpo.monitoring.history import Row
from chatgrpo.monitoring.meters import PROCESS
from chatgrpo.monitoring.monitor import MonitorService

logger = logging.getLogger(__name__)

SOURCE = str(ULID())
"""Of this process, for the monitor."""
INTERVAL_S = 5.0
# A hub that takes longer is down; the next report is as good.
TIMEOUT_S = 4.0


async def report_forever(
    monitor: MonitorService, read: Callable[[], Awaitable[Sequence[Row]]], *, interval_s: float = INTERVAL_S
) -> None:
    """Until cancelled. A report that is not taken is counted and forgotten."""
    while True:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await monitor.report(SOURCE, await read())
        except (PlatformError, TimeoutError) as error:
            PROCESS.of(REPORTS_DROPPED).inc()
            logger.debug("report dropped: %s", error)
        except Exception:
            # A mistake in one collector must not end the reports of all others.
            PROCESS.of(REPORTS_DROPPED).inc()
            logger.exception("report failed")
        await asyncio.sleep(interval_s)
