"""A deadline for a piece of a task's work, as `asyncio.timeout` has it, for less: every request needs several."""

from __future__ import annotations

import asyncio


class Alarm:
    """Cancels the running task after `limit_s`, unless stopped before. Whoever catches the CancelledError asks `rang`
    whether it was this alarm's.

    alarm = Alarm(5.0)
    try:
        await work()
    except asyncio.CancelledError:
        if not alarm.rang():
            raise
        raise DeadlineExceeded("too late") from None
    finally:
        alarm.stop()
    """

    __slots__ = ("_has_fired", "_num_cancels", "_task", "_timer")

    def __init__(self, limit_s: float) -> None:
        task = asyncio.current_task()
        assert task is not None, "only tasks can be cancelled"
        self._task = task
        self._num_cancels = task.cancelling()
        self._has_fired = False
        self._timer = asyncio.get_running_loop().call_later(limit_s, self._fire)

    def stop(self) -> None:
        self._timer.cancel()
        if self._has_fired:  # and the work ended in another way
            self.rang()

    def rang(self) -> bool:
        """Once, in the handler of the CancelledError. False when somebody else cancelled the task as well: that goes
        first."""
        has_fired, self._has_fired = self._has_fired, False
        return has_fired and self._task.uncancel() <= self._num_cancels

    def _fire(self) -> None:
        self._has_fired = True
        self._task.cancel()
