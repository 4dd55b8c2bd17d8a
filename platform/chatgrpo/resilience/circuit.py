"""A circuit breaker as values: what is known of an upstream, and whether it is called.

Closed, an upstream is called. When too many calls of a window fail it opens: nobody calls it for `open_s`, twice as
long each time. Then it is half open: one call at a time probes it, good ones in a row close it, a bad one opens it
again. A circuit is shared by all who call the upstream; the outcomes that open it are each caller's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from math import floor
from typing import Final

from chatgrpo.resilience.config import BreakerConfig

SLOTS: Final = 10


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """One that is not closed; a closed one is None. Times are seconds since the epoch. `probe_at`: when the probe that
    is under way began."""

    opened_at: float
    num_openings: int = 1
    num_good_probes: int = 0
    probe_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`retry_after_s` counts when the call is refused."""

    state: State
    is_admitted: bool
    retry_after_s: float = 0.0


def decide(circuit: Circuit | None, config: BreakerConfig, now: float) -> Decision:
    """Whether to call now. An admitted call of a half-open circuit is a probe."""
    if circuit is None:
        return Decision(state=State.CLOSED, is_admitted=True)
    left_s = circuit.opened_at + open_for(circuit.num_openings, config) - now
    if left_s > 0:
        return Decision(state=State.OPEN, is_admitted=False, retry_after_s=left_s)
    if circuit.probe_at is not None and now < circuit.probe_at + config.probe_timeout_s:
        return Decision(state=State.HALF_OPEN, is_admitted=False, retry_after_s=1.0)
    return Decision(state=State.HALF_OPEN, is_admitted=True)


def open_for(num_openings: int, config: BreakerConfig) -> float:
    # Bounded exponent: 2.0**1100 is no float any more.
    return min(config.max_open_s, config.open_s * 2.0 ** min(num_openings - 1, 60))


def probing(circuit: Circuit, now: float) -> Circuit:
    """With a probe under way."""
    return replace(circuit, probe_at=now)


def probed(circuit: Circuit, config: BreakerConfig, now: float, *, is_good: bool) -> Circuit | None:
    """After a probe; None when that closed it."""
    if not is_good:
        return Circuit(opened_at=now, num_openings=circuit.num_openings + 1)
    if circuit.num_good_probes + 1 >= config.num_probes:
        return None
    return replace(circuit, num_good_probes=circuit.num_good_probes + 1, probe_at=None)


class Window:
    """Outcomes of the calls of the last `window_s`, a tenth of it at a time."""

    def __init__(self, config: BreakerConfig) -> None:
        self._config = config
        self._slots: dict[int, tuple[int, int]] = {}

    def add(self, now: float, *, is_good: bool) -> None:
        slot = self._slot(now)
        num_calls, num_failed = self._slots.get(slot, (0, 0))
        self._slots[slot] = (num_calls + 1, num_failed + (not is_good))
        if len(self._slots) > SLOTS:
            self._slots = {s: counts for s, counts in self._slots.items() if s > slot - SLOTS}

    def must_open(self, now: float) -> bool:
        num_calls, num_failed = self.counts(now)
        return num_calls >= self._config.min_calls and num_failed >= self._config.error_rate * num_calls

    def counts(self, now: float) -> tuple[int, int]:
        """Calls, and failed ones among them."""
        first = self._slot(now) - SLOTS
        recent = [counts for slot, counts in self._slots.items() if slot > first]
        return sum(calls for calls, _ in recent), sum(failed for _, failed in recent)

    def clear(self) -> None:
        self._slots.clear()

    def _slot(self, now: float) -> int:
        return floor(now * SLOTS / self._config.window_s)
