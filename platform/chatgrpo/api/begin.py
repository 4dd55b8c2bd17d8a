"""The first step of a coroutine, taken at once: what need not wait needs no task (eager tasks are of Python 3.12)."""

from __future__ import annotations

import types
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any


def begin(coroutine: Coroutine[Any, Any, None]) -> Awaitable[None] | None:
    """Runs it until it waits: the rest, to be awaited by a task; None when it is through. Raises what it raises.
    Until it waits it must not ask which task it is in."""
    try:
        waits_for = coroutine.send(None)
    except StopIteration:
        return None
    return _rest(waits_for, coroutine)


@types.coroutine
def _rest(waits_for: Any, coroutine: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Hands on to the event loop what the coroutine waits for, and to the coroutine what came of it."""
    try:
        while True:
            try:
                came = yield waits_for
            except BaseException as error:  # noqa: BLE001 - also that the task is cancelled
                waits_for = coroutine.throw(error)
            else:
                waits_for = coroutine.send(came)
    except StopIteration:
        return
