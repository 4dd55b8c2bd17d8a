"""Which replica gets the next request: strategies as functions of values.

A strategy is given the candidates and the facts of one turn, and orders the candidates, best first; who calls it takes
the first that has room. `Ledger` keeps what a router itself sees of its replicas: what is under way, how long answers
took, how many went where. Replicas report the rest (weight, load).

    order = STRATEGIES["least_connections"](candidates, Turn(number=7, now=clock.monotonic(), draw=rng.random()))
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

PROBE_HALF_LIFE_S: Final = 10.0
"""In this time a remembered latency comes to count half: so a replica that was slow is tried again."""
EWMA_SHARE: Final = 0.3
"""Of the newest latency in the average."""
STICKY_SLACK: Final = 4
"""Requests by which a conversation's own replica may be busier than the idlest one before it is left."""
FULL: Final = 0.95
"""Load from which a replica is only taken when all others are as full."""


class Strategy(StrEnum):
    ROUND_ROBIN = "round_robin"
    LEAST_CONNECTIONS = "least_connections"
    WEIGHTED = "weighted"
    LATENCY = "latency"
    RESOURCE_AWARE = "resource_aware"
    STICKY_LEAST_LOADED = "sticky_least_loaded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """`latency_s`: average of its answers, last measured at `measured_at` (monotonic seconds); None: it has not
    answered yet. `load`: 0 to 1, how full its scarcest resource is. `num_routed`: requests it was ever given."""

    id: str
    in_flight: int = 0
    weight: float = 1.0
    latency_s: float | None = None
    measured_at: float = 0.0
    load: float = 0.0
    num_routed: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """`number` counts the requests of this router; `draw` is a random number in [0, 1), which breaks ties between
    routers that see the same; `session` names the conversation, if there is one."""

    number: int
    now: float
    draw: float = 0.0
    session: str | None = None


Rank = Callable[[Sequence[Candidate], Turn], list[Candidate]]


def round_robin(candidates: Sequence[Candidate], turn: Turn) -> list[Candidate]:
    first = turn.number % len(candidates)
    return [*candidates[first:], *candidates[:first]]


def least_connections(candidates: Sequence[Candidate], turn: Turn) -> list[Candidate]:
    return _sorted(candidates, turn, lambda candidate: candidate.in_flight)


def weighted(candidates: Sequence[Candidate], turn: Turn) -> list[Candidate]:
    """Requests in proportion to the weights, as evenly in time as whole requests can be; weight 0 only when there is
    nobody else."""
    return sorted(candidates, key=lambda c: (c.num_routed + 1) / c.weight if c.weight > 0 else float("inf"))


def latency(candidates: Sequence[Candidate], turn: Turn) -> list[Candidate]:
    """The shortest expected wait: the average latency times what is under way before. Who has not answered yet is tried
    with one request; an average fades while nothing new is measured, which is how a slow replica is probed."""

    def expected_s(candidate: Candidate) -> float:
        if candidate.latency_s is None:
            return 0.0 if candidate.in_flight == 0 else float("inf")
        age_s = max(0.0, turn.now - candidate.measured_at)
        # While an answer is awaited nothing fades: one probe at a time.
        fading = 0.5 ** (age_s / PROBE_HALF_LIFE_S) if candidate.in_flight == 0 else 1.0
        return candidate.latency_s * fading * (candidate.in_flight + 1)

    return _sorted(candidates, turn, expected_s)


def resource_aware(candidates: Sequence[Candidate], turn: Turn) -> list[Candidate]:
    """Most room for each request that is under way; reports are seconds old, so what was sent since counts too."""
    return _sorted(candidates, turn, lambda c: (c.load >= FULL, (c.in_flight + 1) / max(1e-3, 1.0 - c.load)))


def sticky_least_loaded(candidates: Sequence[Candidate], turn: Turn) -> list[Candidate]:
    """A conversation stays where its prefix is cached, unless that replica is much busier than the idlest. Rendezvous
    hashing: when a replica goes, only its own conversations move."""
    by_load = least_connections(candidates, turn)
    if turn.session is None:
        return by_load
    session = turn.session
    home = max(candidates, key=lambda candidate: _hash(session, candidate.id))
    if home.in_flight > by_load[0].in_flight + STICKY_SLACK:
        return by_load
    return [home, *(candidate for candidate in by_load if candidate is not home)]


STRATEGIES: Final[Mapping[Strategy, Rank]] = {
    Strategy.ROUND_ROBIN: round_robin,
    Strategy.LEAST_CONNECTIONS: least_connections,
    Strategy.WEIGHTED: weighted,
    Strategy.LATENCY: latency,
    Strategy.RESOURCE_AWARE: resource_aware,
    Strategy.STICKY_LEAST_LOADED: sticky_least_loaded,
}


class Ledger:
    """What one router has seen of its replicas. Every request that is `routed` is `completed` once."""

    def __init__(self) -> None:
        self._seen: dict[str, Candidate] = {}
        self._started: dict[str, tuple[str, float]] = {}

    def candidates(self, reports: Mapping[str, Mapping[str, Any]]) -> list[Candidate]:
        """Of the replicas in `reports`, each with what it said of itself last: `weight` and `load`, absent at first."""
        known = [self._seen[id_].num_routed / self._seen[id_].weight for id_ in reports if id_ in self._seen]
        # A new replica joins at the least share so far; from nothing it would get every request until it had caught up.
        joined_at = min(known, default=0.0)
        found = []
        for id_, report in reports.items():
            weight, load = max(0.0, float(report.get("weight", 1.0))), float(report.get("load", 0.0))
            seen = self._seen.get(id_) or Candidate(id=id_, num_routed=joined_at * weight)
            found.append(replace(seen, weight=weight, load=load))
            self._seen[id_] = replace(seen, weight=weight or 1.0, load=load)
        return found

    def routed(self, id_: str, request_id: str, *, now: float) -> None:
        seen = self._seen.get(id_) or Candidate(id=id_)
        self._seen[id_] = replace(seen, in_flight=seen.in_flight + 1, num_routed=seen.num_routed + 1)
        self._started[request_id] = id_, now

    def completed(self, request_id: str, *, now: float) -> None:
        """Unknown requests are ignored: their replica was forgotten."""
        id_, started = self._started.pop(request_id, ("", now))
        seen = self._seen.get(id_)
        if seen is None:
            return
        took_s = now - started
        average_s = took_s if seen.latency_s is None else EWMA_SHARE * took_s + (1 - EWMA_SHARE) * seen.latency_s
        self._seen[id_] = replace(seen, in_flight=max(0, seen.in_flight - 1), latency_s=average_s, measured_at=now)

    def keep_only(self, ids: Iterable[str]) -> None:
        """Forgets replicas that are gone, and their requests."""
        ids = set(ids)
        self._seen = {id_: seen for id_, seen in self._seen.items() if id_ in ids}
        self._started = {request: at for request, at in self._started.items() if at[0] in ids}


def _sorted(candidates: Sequence[Candidate], turn: Turn, cost: Callable[[Candidate], Any]) -> list[Candidate]:
    """Ties go round from a random place, so that many routers do not all fall upon the same replica."""
    first = int(turn.draw * len(candidates))
    return sorted([*candidates[first:], *candidates[:first]], key=cost)


def _hash(session: str, id_: str) -> bytes:
    return hashlib.blake2b(f"{session}\0{id_}".encode(), digest_size=8).digest()
