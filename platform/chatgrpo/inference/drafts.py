"""Guesses of what a reply says next, by looking up what followed the same words before.

Replies repeat their prompt: names, numbers, quoted text, code. Where the last few tokens stood before, what followed
them then is a draft of what follows now (prompt lookup decoding, A. Saxena 2023; the proposer of Leviathan et al.,
arXiv:2211.17192, without a model). Verifying several tokens costs one forward that reads the weights once, so with few
rows it costs little more than one token.

Drafts never change what is said: each position is sampled as ever, from the model's distribution with the request's
own uniform for that position, and a draft only decides whether the next position is known already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Longest draft: beyond it the chance that all of it is right is small, and each token costs arithmetic.
MAX_DRAFT = 8
# Rows up to which decoding is bound by reading the weights.
MAX_ROWS = 4
# How many last tokens must have stood before, the longer ones first: one alone says too little.
_NGRAMS = (3, 2)
# Tokens of a draft that come true, before any was seen; and the weight of each draft that was.
_FIRST_GUESS, _WEIGHT = 1.0, 0.3
# What a step with drafts costs, in plain steps, before one was measured; a measured cost fades towards it with every
# plain step, so that one disturbed measurement does not switch drafts off for good.
_FIRST_COST, _FADE, _COST_WEIGHT = 1.5, 0.01, 0.2
# What drafts must gain by the estimate before they are worth their risk.
_MARGIN = 1.1


class Drafter:
    """Of one reply. It learns how often its drafts come true, also from those that nobody verified: what is said next
    shows it."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._pending: tuple[int, ...] = ()
        self._num_true = 0
        self.expected = _FIRST_GUESS
        for token in prompt_ids:
            self._append(token)

    def propose(self, room: int) -> tuple[int, ...]:
        """At most `room` tokens that may come next; often none."""
        if not self._pending:
            self._pending, self._num_true = self._look_up(), 0
        return self._pending[self._num_true :][:room]

    def said(self, token: int) -> None:
        """The next token of the reply."""
        if self._pending:
            came_true = token == self._pending[self._num_true]
            self._num_true += came_true
            if not came_true or self._num_true == len(self._pending):
                self.expected += _WEIGHT * (self._num_true - self.expected)
                self._pending = ()
        self._append(token)

    def _append(self, token: int) -> None:
        # What ends before this token is followed by it: the end itself has no continuation yet.
        for n in _NGRAMS:
            if len(self._ids) >= n:
                self._after[tuple(self._ids[-n:])] = len(self._ids)
        self._ids.append(token)

    def _look_up(self) -> tuple[int, ...]:
        for n in _NGRAMS:
            start = self._after.get(tuple(self._ids[-n:]))
            if start is not None:
                return tuple(self._ids[start : start + MAX_DRAFT])
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftFacts:
    """`expected`: for each row that has a draft, how many of its tokens will come true. `cost`: of a step with drafts,
    in steps without."""

    num_rows: int
    expected: tuple[float, ...]
    cost: float


def decide(facts: DraftFacts) -> bool:
    """Whether the next step should verify drafts: when it says more tokens a second."""
    if not facts.expected or facts.num_rows > MAX_ROWS:
        return False
    return facts.num_rows + sum(facts.expected) > _MARGIN * facts.cost * facts.num_rows


class StepCosts:
    """What steps took, by number of rows, as far as drafts are concerned."""

    def __init__(self) -> None:
        self._plain: dict[int, float] = {}
        self._cost: dict[int, float] = {}

    def cost(self, num_rows: int) -> float:
        return self._cost.get(num_rows, _FIRST_COST)

    def plain(self, num_rows: int, seconds: float) -> None:
        old = self._plain.get(num_rows, seconds)
        self._plain[num_rows] = old + _COST_WEIGHT * (seconds - old)
        self._cost[num_rows] = self.cost(num_rows) + _FADE * (_FIRST_COST - self.cost(num_rows))

    def drafted(self, num_rows: int, seconds: float) -> None:
        if plain := self._plain.get(num_rows):
            cost = self.cost(num_rows)
            self._cost[num_rows] = cost + _COST_WEIGHT * (seconds / plain - cost)
