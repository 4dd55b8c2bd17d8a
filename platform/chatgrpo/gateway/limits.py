"""The decision of a rate limiter, as a pure function: meters and what they read -> admitted or not.

A window is cut into SLOTS slots. What counts at a moment are the running slot and the SLOTS before it, which together
cover more than the window: so in no window, wherever it is laid, are more than `limit` admitted. The price is that up
to a twentieth of the window is waited too long. All meters of a request decide together: either each counts it, or
none does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

SLOTS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """`window_s` 0: counts what is under way at once, in leases. `key` names the counter. A shadow meter counts and
    never refuses."""

    key: str
    name: str
    limit: int
    window_s: float
    cost: int = 1
    is_shadow: bool = False
    is_closed: bool = False
    """Whether requests are refused while the counters cannot be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """`used` before the request; `oldest` is the first slot that counts, or the time at which the first lease ends."""

    used: int
    oldest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`over` are the meters that are used up, shadows included. `at` is the time of the decision."""

    is_admitted: bool
    meters: tuple[Meter, ...]
    readings: tuple[Reading, ...]
    over: tuple[Meter, ...]
    retry_after_s: float
    at: float
    lease: str = ""


def slot_of(now: float, window_s: float) -> int:
    return int(now * SLOTS / window_s)


def read_slots(slots: Mapping[int, int], meter: Meter, now: float) -> Reading:
    first = slot_of(now, meter.window_s) - SLOTS
    counted = {slot: count for slot, count in slots.items() if slot >= first and count > 0}
    return Reading(used=sum(counted.values()), oldest=min(counted, default=first))


def decide(meters: Sequence[Meter], readings: Sequence[Reading], *, now: float, lease: str = "") -> Verdict:
    """A request passes when every meter that is no shadow has room for its cost. It may be retried when the slowest
    of the refusing meters gets its first room."""
    over = [(m, r) for m, r in zip(meters, readings, strict=True) if r.used + m.cost > m.limit]
    refusing = [_room_after(meter, reading, now) for meter, reading in over if not meter.is_shadow]
    return Verdict(
        is_admitted=not refusing,
        meters=tuple(meters),
        readings=tuple(readings),
        over=tuple(meter for meter, _ in over),
        retry_after_s=max(refusing, default=0.0),
        at=now,
        lease=lease,
    )


def _room_after(meter: Meter, reading: Reading, now: float) -> float:
    if meter.window_s == 0:
        return 1.0  # nobody knows when a request under way ends
    return max(0.0, (reading.oldest + SLOTS + 1) * meter.window_s / SLOTS - now)
