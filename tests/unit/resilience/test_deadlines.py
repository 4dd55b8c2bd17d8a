"""A stream is given up when it falls silent, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from chatgrpo.errors import DeadlineExceeded
from chatgrpo.resilience.deadlines import timed


async def silent_after(num_pieces: int) -> AsyncIterator[int]:
    for piece in range(num_pieces):
        yield piece
    await asyncio.Event().wait()


async def test_nothing_comes() -> None:
    with pytest.raises(DeadlineExceeded, match=r"nothing for 0\.01 s"):
        await anext(timed(silent_after(0), first_s=0.01, piece_s=60))


async def test_it_falls_silent() -> None:
    pieces = timed(silent_after(3), first_s=60, piece_s=0.02)
    assert [await anext(pieces) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DeadlineExceeded, match=r"nothing for 0\.02 s"):
        await anext(pieces)


async def test_a_timeout_of_the_stream_itself_is_passed_on() -> None:
    async def broken() -> AsyncIterator[int]:
        raise TimeoutError("its own")
        yield 1

    with pytest.raises(TimeoutError, match="its own"):
        await anext(timed(broken(), first_s=60, piece_s=60))
