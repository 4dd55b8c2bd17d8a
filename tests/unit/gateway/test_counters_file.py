"""Counters in a file: as exact as those in memory, whoever shares it and whoever is killed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgrpo.clock import SystemClock
from chatgrpo.errors import Unavailable
from chatgrpo.gateway import window_table
from chatgrpo.gateway.counters import MemoryCounters
from chatgrpo.gateway.counters_file import FileCounters
from chatgrpo.gateway.limits import Meter
from tests.fakes import FakeClock

CLIENT = """
import asyncio, sys
from pathlib import Path
from chatgrpo.clock import SystemClock
from chatgrpo.gateway.counters_file import FileCounters
from chatgrpo.gateway.limits import Meter

async def main():
    counters = FileCounters(Path(sys.argv[1]), SystemClock())
    meter = Meter(key="shared", name="shared", limit=3000, window_s=3600.0)
    while True:
        verdict = await counters.take([meter], lease="")
        print("y" if verdict.is_admitted else "n", flush=True)
        if not verdict.is_admitted:
            return
        await asyncio.sleep(0)

asyncio.run(main())
"""


def test_processes_that_are_killed_admit_no_more_than_the_limit(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CLIENT, str(tmp_path / "limits")]

    with ExitStack() as stack:

        def start() -> subprocess.Popen[str]:
            return stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))

        def output_of(client: subprocess.Popen[str]) -> IO[str]:
            assert client.stdout is not None
            return client.stdout

        first = start()
        assert output_of(first).readline() == "y\n"
        first.send_signal(signal.SIGKILL)
        said = [output_of(client).read() for client in [first, *(start() for _ in range(3))]]
    # One line was read above; what the killed one counted last it may not have said.
    admitted = 1 + sum(text.count("y") for text in said)
    assert 2990 <= admitted <= 3000
    assert [text[-2:] for text in said[1:]] == ["n\n"] * 3


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("counters") / "limits"


NUMBERS = count()


@given(
    st.lists(st.tuples(st.floats(0, 20), st.integers(1, 4), st.booleans()), max_size=40), st.sampled_from([1.0, 7.0])
)
def test_it_counts_as_memory_does(path: Path, steps: list[tuple[float, int, bool]], window_s: float) -> None:
    async def run() -> None:
        clock, key = FakeClock(), f"k{next(NUMBERS)}"
        file, memory = FileCounters(path, clock), MemoryCounters(clock)
        for wait_s, cost, is_given_back in steps:
            clock.advance(wait_s)
            meter = Meter(key=key, name="k", limit=9, window_s=window_s, cost=cost)
            found, wanted = [await counters.take([meter], lease="") for counters in (file, memory)]
            assert (found.is_admitted, found.readings[0].used) == (wanted.is_admitted, wanted.readings[0].used)
            assert found.retry_after_s == pytest.approx(wanted.retry_after_s)
            if is_given_back and found.is_admitted:
                for counters in (file, memory):
                    await counters.give_back(meter, cost, taken_at=found.at)
        await file.close()

    asyncio.run(run())


@pytest.fixture
async def counters(tmp_path: Path) -> AsyncIterator[FileCounters]:
    made = FileCounters(tmp_path / "limits", SystemClock())
    yield made
    await made.close()


async def test_what_is_no_file_of_counters_is_refused(counters: FileCounters, tmp_path: Path) -> None:
    (tmp_path / "limits").write_text("precious")
    with pytest.raises(Unavailable, match="is not a file of counters"):
        await counters.take([Meter(key="a", name="a", limit=1, window_s=60.0)], lease="")
    assert (tmp_path / "limits").read_text() == "precious"


async def test_more_callers_than_there_is_room_for(counters: FileCounters, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's count is thrown away for another's: the rule says whether such callers pass."""
    monkeypatch.setattr(window_table, "NUM_ENTRIES", window_table.WAYS)
    meters = [Meter(key=str(i), name="a", limit=1, window_s=60.0) for i in range(window_table.WAYS + 1)]
    for meter in meters[:-1]:
        assert (await counters.take([meter], lease="")).is_admitted
    with pytest.raises(Unavailable, match="room"):
        await counters.take([meters[-1]], lease="")
    assert not (await counters.take([meters[0]], lease="")).is_admitted
