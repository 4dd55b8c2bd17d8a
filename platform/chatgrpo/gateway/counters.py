"""Where limits count. Each kind decides and counts in one step that nothing can come between. The kind for one process
is here; `counters_file` is for all processes of a machine, `counters_redis` for all of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from chatgrpo.clock import Clock
from chatgrpo.gateway.limits import SLOTS, Meter, Reading, Verdict, decide, read_slots, slot_of

LEASE_S: Final = 600.0
"""After this a request under way no longer counts: whoever held the lease may have died."""
MAX_COUNTERS: Final = 100_000
"""Counters one process keeps; beyond, those that are not in use are swept."""


class Counters(Protocol):
    """`lease` names the request for `release`. All raise Unavailable when they cannot be reached."""

    async def take(self, meters: Sequence[Meter], *, lease: str) -> Verdict:
        """Counts the request on every meter if all have room, on none otherwise."""
        ...

    async def give_back(self, meter: Meter, amount: int, *, taken_at: float) -> None:
        """What was taken and not used."""
        ...

    async def release(self, meters: Sequence[Meter], *, lease: str) -> None:
        """Ends the leases of a request."""
        ...

    async def close(self) -> None: ...


class MemoryCounters:
    """Exact for one process. No method waits, so nothing comes between."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._slots: dict[str, dict[int, int]] = {}
        self._ends: dict[str, float] = {}
        self._leases: dict[str, dict[str, float]] = {}

    async def take(self, meters: Sequence[Meter], *, lease: str) -> Verdict:
        now = self._clock.now()
        verdict = decide(meters, [self._read(meter, now) for meter in meters], now=now, lease=lease)
        if verdict.is_admitted:
            for meter in meters:
                self._count(meter, now, lease)
        return verdict

    async def give_back(self, meter: Meter, amount: int, *, taken_at: float) -> None:
        slots = self._slots.get(meter.key, {})
        slot = slot_of(taken_at, meter.window_s)
        if slot in slots:
            slots[slot] -= amount

    async def release(self, meters: Sequence[Meter], *, lease: str) -> None:
        for meter in meters:
            if meter.window_s == 0 and meter.key in self._leases:
                self._leases[meter.key].pop(lease, None)
                if not self._leases[meter.key]:
                    del self._leases[meter.key]

    async def close(self) -> None:
        return None

    def _read(self, meter: Meter, now: float) -> Reading:
        if meter.window_s == 0:
            held = [end for end in self._leases.get(meter.key, {}).values() if end > now]
            return Reading(used=len(held), oldest=min(held, default=now))
        return read_slots(self._slots.get(meter.key, {}), meter, now)

    def _count(self, meter: Meter, now: float, lease: str) -> None:
        if meter.window_s == 0:
            held = self._leases.setdefault(meter.key, {})
            held[lease] = now + LEASE_S
            return
        if len(self._slots) >= MAX_COUNTERS:
            self._sweep(now)
        slots = self._slots.setdefault(meter.key, {})
        slot = slot_of(now, meter.window_s)
        slots[slot] = slots.get(slot, 0) + meter.cost
        self._ends[meter.key] = now + 2 * meter.window_s
        if len(slots) > 2 * SLOTS:
            self._slots[meter.key] = {s: n for s, n in slots.items() if s >= slot - SLOTS}

    def _sweep(self, now: float) -> None:
        for key in [key for key, end in self._ends.items() if end <= now]:
            del self._ends[key], self._slots[key]
