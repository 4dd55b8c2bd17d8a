"""Circuits of upstreams as all replicas see them: each replica counts its own calls, and what it concludes is shared
through the store. A closed circuit is absent there, so a healthy upstream costs one look a quarter of a second.

Without the store each replica goes on with what it knows itself: a breaker that stopped chat because of its own
database would be worse than none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from prometheus_client import CollectorRegistry

from chatgrpo.clock import Clock
from chatgrpo.errors import Conflict, Unavailable
from chatgrpo.gateway.circuit_store import CircuitStore
from chatgrpo.monitoring.catalog import BREAKER_OPENINGS, BREAKER_REFUSALS, BREAKER_STATE
from chatgrpo.monitoring.meters import PROCESS, Meter
from chatgrpo.resilience.circuit import Circuit, Decision, State, Window, decide, probed, probing
from chatgrpo.resilience.config import BreakerConfig

logger = logging.getLogger(__name__)

_LEVELS: Final = {State.CLOSED: 0.0, State.HALF_OPEN: 1.0, State.OPEN: 2.0}
LOOK_S: Final = 0.25
"""How old the shared view may be."""
MAX_UPSTREAMS: Final = 1000
"""Whose windows one process keeps; the longest unused goes first."""
MAX_ATTEMPTS: Final = 4
"""Compare-and-set attempts; whoever loses so often finds the circuit changed by others anyhow."""


@dataclass(slots=True, eq=False)
class _Upstream:
    name: str
    window: Window
    circuit: Circuit | None = None
    looked_at: float = float("-inf")
    shown: State | None = None


@dataclass(slots=True)
class Admission:
    """A call that was let through. The first word on how it went counts."""

    upstream: str
    is_probe: bool
    is_settled: bool = False


class Circuits:
    def __init__(
        self,
        shared: CircuitStore,
        *,
        config: BreakerConfig,
        clock: Clock,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._shared = shared
        self._config = config
        self._clock = clock
        self._upstreams: dict[str, _Upstream] = {}
        self._openings = Meter(BREAKER_OPENINGS, registry, None)
        self._refusals = Meter(BREAKER_REFUSALS, registry, None)

    async def admit(self, upstream: str) -> Admission:
        """Raises Unavailable, with the seconds until the next try, while the upstream is not to be called."""
        known = self._known(upstream)
        decision = await self._look(known)
        if decision.is_admitted and decision.state is State.HALF_OPEN:
            decision = await self._claim_probe(known)
        if not decision.is_admitted:
            self._refusals.inc()
            wait_s = max(1.0, decision.retry_after_s)
            raise Unavailable(f"{upstream} failed too often and is left alone; come back in {wait_s:.0f} s", wait_s)
        return Admission(upstream, decision.state is State.HALF_OPEN)

    async def succeeded(self, admission: Admission) -> None:
        await self._settle(admission, is_good=True)

    async def failed(self, admission: Admission) -> None:
        await self._settle(admission, is_good=False)

    async def abandoned(self, admission: Admission) -> None:
        """The call said nothing about the upstream: its client left, or what it asked for was wrong."""
        if not admission.is_settled and admission.is_probe:
            await self._change(self._known(admission.upstream), lambda c: replace(c, probe_at=None) if c else None)
        admission.is_settled = True

    async def state(self, upstream: str) -> State:
        return (await self._look(self._known(upstream))).state

    async def _settle(self, admission: Admission, *, is_good: bool) -> None:
        if admission.is_settled:
            return
        admission.is_settled = True
        now, known = self._clock.now(), self._known(admission.upstream)
        if admission.is_probe:
            await self._change(known, lambda c: probed(c, self._config, now, is_good=is_good) if c else None)
            return
        known.window.add(now, is_good=is_good)
        if not is_good and known.circuit is None and known.window.must_open(now):
            logger.warning("circuit opens upstream=%s calls_failed=%s", known.name, known.window.counts(now))
            self._openings.inc()
            known.window.clear()
            # An opening by another replica stands: calls that were under way then say nothing new.
            await self._change(known, lambda c: c or Circuit(opened_at=now))

    async def _look(self, known: _Upstream) -> Decision:
        now = self._clock.monotonic()
        if now - known.looked_at >= LOOK_S:
            known.looked_at = now
            try:
                known.circuit = (await self._shared.load(known.name)).circuit
            except Unavailable as error:
                logger.warning("circuits are not shared for now: %s", error.message)
        decision = decide(known.circuit, self._config, self._clock.now())
        if decision.state is not known.shown:
            known.shown = decision.state
            PROCESS.of(BREAKER_STATE).set(_LEVELS[decision.state], upstream=known.name)
        return decision

    async def _claim_probe(self, known: _Upstream) -> Decision:
        """One replica wins the probe; for the others it is under way."""
        now = self._clock.now()
        decision = decide(None, self._config, now)

        def claimed(circuit: Circuit | None) -> Circuit | None:
            nonlocal decision
            decision = decide(circuit, self._config, now)
            return probing(circuit, now) if circuit is not None and decision.is_admitted else circuit

        if not await self._change(known, claimed):
            return Decision(state=State.HALF_OPEN, is_admitted=False, retry_after_s=1.0)
        return decision

    async def _change(self, known: _Upstream, change: Callable[[Circuit | None], Circuit | None]) -> bool:
        """Changes the circuit for everybody. False when others kept coming between."""
        for _ in range(MAX_ATTEMPTS):
            try:
                stored = await self._shared.load(known.name)
                changed = change(stored.circuit)
                if changed != stored.circuit:
                    await self._shared.swap(known.name, stored, changed)
            except Conflict:
                continue
            except Unavailable as error:
                logger.warning("a circuit changes for this replica alone: %s", error.message)
                changed = change(known.circuit)
            known.circuit = changed
            return True
        return False

    def _known(self, upstream: str) -> _Upstream:
        known = self._upstreams.pop(upstream, None) or _Upstream(upstream, Window(self._config))
        self._upstreams[upstream] = known
        if len(self._upstreams) > MAX_UPSTREAMS:
            del self._upstreams[next(iter(self._upstreams))]
        return known
