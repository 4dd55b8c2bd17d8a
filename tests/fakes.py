"""Fakes small enough to read in the test that uses them."""

from __future__ import annotations


class FakeClock:
    """Time that moves only when told to."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self.time = start

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += seconds
