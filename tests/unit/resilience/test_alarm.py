"""An alarm ends its own work and nobody else's."""

from __future__ import annotations

import asyncio

import pytest

from chatgrpo.resilience.alarm import Alarm


async def guarded(limit_s: float, work: asyncio.Future[None]) -> str:
    alarm = Alarm(limit_s)
    try:
        await work
    except asyncio.CancelledError:
        if not alarm.rang():
            raise
        return "late"
    finally:
        alarm.stop()
    return "done"


async def test_too_late_and_in_time() -> None:
    never = asyncio.get_running_loop().create_future()
    assert await guarded(0.001, never) == "late"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0, "the task can be cancelled anew"
    soon = asyncio.get_running_loop().create_future()
    soon.set_result(None)
    assert await guarded(0.001, soon) == "done"
    await asyncio.sleep(0.002)  # a stopped alarm stays silent


async def test_a_cancellation_by_somebody_else_goes_first() -> None:
    task = asyncio.create_task(guarded(60.0, asyncio.get_running_loop().create_future()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_within_another_alarm_the_first_to_ring_ends_its_own_work() -> None:
    async def inner() -> None:
        assert await guarded(0.001, asyncio.get_running_loop().create_future()) == "late"

    assert await guarded(60.0, asyncio.ensure_future(inner())) == "done"
