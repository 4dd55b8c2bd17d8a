"""Deadlines of a stream: until its first piece, and between two pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

from chatgrpo.errors import DeadlineExceeded
from chatgrpo.resilience.alarm import Alarm

T = TypeVar("T")


async def timed(pieces: AsyncIterator[T], *, first_s: float, piece_s: float) -> AsyncGenerator[T, None]:
    """The pieces as they come. Raises DeadlineExceeded when one is too late; the caller closes `pieces`."""
    limit_s = first_s
    while True:
        alarm = Alarm(limit_s)
        try:
            piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except asyncio.CancelledError:
            if not alarm.rang():
                raise
            raise DeadlineExceeded(f"the model said nothing for {limit_s:g} s; try again, or ask for less") from None
        finally:
            alarm.stop()
        yield piece
        limit_s = piece_s
