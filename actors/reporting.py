"""Tells the metrics hub what a process of the platform counts, beside its work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from actors.metrics_hub import MonitorClient
from chatgrpo.monitoring.history import Row
from chatgrpo.monitoring.merging import rows_of
from chatgrpo.monitoring.meters import PROCESS
from chatgrpo.monitoring.reporter import report_forever


def report_process(more: Callable[[], list[Row]] = list) -> asyncio.Task[None]:
    """Begins on the running loop; cancel the task to end it. `more` are figures that are not in the registry."""

    async def read() -> list[Row]:
        return [*rows_of(PROCESS.registry), *more()]

    return asyncio.get_running_loop().create_task(report_forever(MonitorClient(), read))
