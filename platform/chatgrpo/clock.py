"""Time, passed in wherever it matters so that policies are tested as values."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch (UTC); for what is stored and shown."""
        ...

    def monotonic(self) -> float:
        """Seconds since an arbitrary point, never going back; for durations and deadlines."""
        ...


class SystemClock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()
