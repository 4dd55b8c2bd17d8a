"""Which group goes to which rollout worker, and which groups a step is trained on. Pure: facts in, decision out.

A step trains on `wanted` places. Weights have the version of the number of steps that made them, so a token that
version v sampled is `step - v` updates old when step `step` trains on it; never more than `max_staleness`.

*Admission.* A worker with weights v is given a group only while all groups up to it fit into the steps up to
v + max_staleness (AReaL, arXiv:2505.24298, eq. 3, counted from the weights that the worker really has). So at 0 nothing
is played ahead: the step is synchronous.
*Taking.* Every group has a last step that may train on it. A step takes the groups that are due first, and it waits for
slower ones as long as the groups left over could not all be trained on in time. So no group is too old merely because
it was long: it is waited for, which keeps long episodes in the data. At staleness 1 with two places a step:

    played with weights 0: a b c d (b, c still run)     step 0 takes a, d      step 1 must take b, c: it waits for them

*Pacing.* Steps whose groups begin together end together: the learner then has two updates to make, and nothing after
them, while the workers all compute or all wait. So groups beyond those of the next step begin apart, `spacing_s` after
the ones before.
*Dropping.* What is too old all the same is played again. With dynamic sampling, groups of equal rewards make room for
new ones, for a bounded number of places a step; beyond that they take up places themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_SHARE: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """`wanted`: places of a step. `total_steps`: nothing is played for later ones. `max_set_aside`: groups of equal
    rewards that a step may replace; 0 without dynamic sampling."""

    wanted: int
    max_staleness: int
    total_steps: int
    max_set_aside: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A worker that is up. `version`: of the weights it has; `num_groups`: it plays now, `capacity`: it should."""

    worker: str
    version: int
    num_groups: int
    capacity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """A group that is being played; `version` is what its worker had when it got the group: no token is older."""

    number: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A group that has been played. `version`: of its oldest token; of one that failed, what its worker had when it got
    the group. `teaches`: its rewards differ (or it failed, which takes up its place as well)."""

    number: int
    version: int
    teaches: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`step`: the next one to train. `num_set_aside`: for it, so far. Numbers order groups by when they were drawn.
    `may_play_ahead`: whether it is time for groups beyond those of the next step."""

    step: int
    seats: Sequence[Seat]
    flights: Sequence[Flight]
    held: Sequence[Held]
    num_set_aside: int = 0
    may_play_ahead: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`send`: workers that get one more group each, in this order. `take`: numbers of the step's groups, oldest first;
    None: wait. `stale`: play these again. `set_aside`: these are replaced by new tasks."""

    send: tuple[str, ...]
    take: tuple[int, ...] | None
    stale: tuple[int, ...]
    set_aside: tuple[int, ...]


def decide(facts: Facts, rules: Rules) -> Decision:
    oldest = facts.step - rules.max_staleness
    stale = tuple(h.number for h in facts.held if h.version < oldest)
    useless = [h.number for h in facts.held if not h.teaches and h.number not in stale]
    set_aside = tuple(useless[: max(0, rules.max_set_aside - facts.num_set_aside)])
    left = [h for h in facts.held if h.number not in stale and h.number not in set_aside]
    return Decision(
        send=_send(facts, rules, num_live=len(facts.flights) + len(left)),
        take=_take(facts, rules, left),
        stale=stale,
        set_aside=set_aside,
    )


def _send(facts: Facts, rules: Rules, *, num_live: int) -> tuple[str, ...]:
    """The worker with the largest free share first."""
    load = {seat.worker: seat.num_groups for seat in facts.seats}
    sent: list[str] = []
    while True:
        open_seats = [
            seat
            for seat in facts.seats
            if load[seat.worker] < seat.capacity and num_live + len(sent) < _room(facts, rules, seat.version)
        ]
        if not open_seats:
            return tuple(sent)
        seat = min(open_seats, key=lambda s: (load[s.worker] / s.capacity, s.worker))
        load[seat.worker] += 1
        sent.append(seat.worker)


def _room(facts: Facts, rules: Rules, version: int) -> int:
    """How many groups may be live, of those that weights `version` may still be used for."""
    steps = min(version + rules.max_staleness + 1, rules.total_steps) - facts.step
    if not facts.may_play_ahead:
        steps = min(steps, 1)
    return max(0, steps) * rules.wanted


def spacing_s(served_at: Sequence[float], num_groups: int, rules: Rules) -> float:
    """Seconds to let pass after `num_groups` groups began, by when the last steps got theirs: four fifths of what the
    workers have for so many, so that it holds nobody up for long. Two steps are looked at together, as they may come in
    pairs, and the fastest of the last few, as there may be evaluations between others. 0 before three steps.

    >>> spacing_s([0.0, 1.0, 4.0, 5.0, 60.0], 2, Rules(wanted=2, max_staleness=1, total_steps=9))
    1.6
    """
    periods = [(late - early) / 2 for early, late in zip(served_at, served_at[2:], strict=False)]
    return _SHARE * min(periods, default=0.0) * num_groups / rules.wanted


def _take(facts: Facts, rules: Rules, held: Sequence[Held]) -> tuple[int, ...] | None:
    if len(held) < rules.wanted:
        return None
    due = {h.number: h.version + rules.max_staleness for h in held}
    order = sorted(due, key=lambda number: (due[number], number))
    taken, rest = order[: rules.wanted], order[rules.wanted :]
    later = [due[number] for number in rest] + [f.version + rules.max_staleness for f in facts.flights]
    for ahead in range(rules.max_staleness + 1):
        if sum(last <= facts.step + ahead for last in later) > ahead * rules.wanted:
            return None
    return tuple(sorted(taken))
