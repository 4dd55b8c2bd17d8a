"""Checkers of what concurrent clients saw of append-only conversations.

A history is a list of operations with the times at which they were asked for and answered. Each checker returns the
first violation that it finds as a sentence, or None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

MAX_STEPS = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """`append` of `value` (answered with `version`), or `read` of the newest `values` at `version`. `returned` is inf
    and `version` None when no answer came: the operation may have happened, or not."""

    client: str
    kind: str
    conversation: str
    invoked: float
    returned: float = inf
    value: str = ""
    version: int | None = None
    values: tuple[str, ...] = ()

    @property
    def is_answered(self) -> bool:
        return self.version is not None


def linearizable(history: Sequence[Op]) -> str | None:
    """Wing and Gong's search (1993) with Lowe's memory of configurations, for each conversation alone."""
    for name in sorted({op.conversation for op in history}):
        ops = sorted((op for op in history if op.conversation == name), key=lambda op: op.invoked)
        # An unanswered read says nothing; an unanswered append may take effect at any later time, or never.
        problem = _search([op for op in ops if op.is_answered or op.kind == "append"])
        if problem:
            return f"{name}: {problem}"
    return None


def _search(ops: Sequence[Op]) -> str | None:
    answered = {index for index, op in enumerate(ops) if op.is_answered}
    stack: list[tuple[frozenset[int], tuple[str, ...]]] = [(frozenset(), ())]
    visited = set(stack)
    furthest: frozenset[int] = frozenset()
    for _ in range(MAX_STEPS):
        if not stack:
            blocking = min((ops[i] for i in answered - furthest), key=lambda op: op.returned)
            return f"no order explains {blocking}"
        done, state = stack.pop()
        if len(done) > len(furthest):
            furthest = done
        left = answered - done
        if not left:
            return None
        deadline = min(ops[index].returned for index in left)
        for index in range(len(ops) - 1, -1, -1):
            op = ops[index]
            if index in done or op.invoked > deadline:
                continue
            after = _apply(op, state)
            if after is None:
                continue
            configuration = (done | {index}, after)
            if configuration not in visited:
                visited.add(configuration)
                stack.append(configuration)
    raise AssertionError("the history is too tangled to search; use fewer clients")


def _apply(op: Op, state: tuple[str, ...]) -> tuple[str, ...] | None:
    """The state after the operation, None when its answer does not fit."""
    if op.kind == "append":
        fits = op.version is None or op.version == len(state) + 1
        return (*state, op.value) if fits else None
    fits = op.version == len(state) and state[len(state) - len(op.values) :] == op.values
    return state if fits else None


def session_order(history: Sequence[Op]) -> str | None:
    """Read your writes, and monotonic reads, for each client and conversation."""
    seen: dict[tuple[str, str], int] = {}
    for op in sorted((op for op in history if op.is_answered), key=lambda op: op.invoked):
        key = (op.client, op.conversation)
        assert op.version is not None
        if op.version < seen.get(key, 0):
            return f"{op.client} went back from version {seen[key]}: {op}"
        seen[key] = op.version
    return None


@dataclass(slots=True)
class _Past:
    """What must be visible, in each conversation, to whoever has seen this much."""

    values: dict[str, set[str]] = field(default_factory=dict)

    def add(self, other: _Past) -> None:
        for name, values in other.values.items():
            self.values.setdefault(name, set()).update(values)

    def copy(self) -> _Past:
        return _Past({name: set(values) for name, values in self.values.items()})


def causal_order(history: Sequence[Op]) -> str | None:
    """Whoever has seen a message sees, in every conversation, all that its writer had seen before writing it. Reads
    must return whole conversations."""
    pasts: dict[str, _Past] = {}
    clients: dict[str, _Past] = {}
    for op in sorted(history, key=lambda op: op.invoked if op.kind == "append" else op.returned):
        past = clients.setdefault(op.client, _Past())
        if op.kind == "append":
            past.values.setdefault(op.conversation, set()).add(op.value)
            pasts[op.value] = past.copy()
            if not op.is_answered:
                past.values[op.conversation].discard(op.value)
            continue
        if not op.is_answered:
            continue
        missing = past.values.get(op.conversation, set()) - set(op.values)
        if missing:
            return f"{op.client} does not see {sorted(missing)[:3]} in {op.conversation}: {op}"
        for value in op.values:
            past.add(pasts[value])
    return None


def nothing_lost(history: Sequence[Op], final: Mapping[str, Sequence[str]]) -> str | None:
    """Every acknowledged append is in the end, once; nothing is there that nobody asked for."""
    asked = {op.value for op in history if op.kind == "append"}
    for op in history:
        count = list(final.get(op.conversation, ())).count(op.value)
        if op.kind == "append" and op.is_answered and count != 1:
            return f"acknowledged append is there {count} times: {op}"
        if op.kind == "append" and count > 1:
            return f"append is there {count} times: {op}"
    for name, values in final.items():
        strange = set(values) - asked
        if strange:
            return f"{name} holds {sorted(strange)[:3]}, which nobody wrote"
    return None


def settled(history: Sequence[Op], final: Mapping[str, Sequence[str]]) -> list[Op]:
    """The history with unanswered appends resolved by what is there in the end: those that never happened left out,
    the others with the version that they made. Sound because nothing is ever taken out, and far quicker to search."""
    ops = []
    for op in history:
        values = list(final.get(op.conversation, ()))
        if op.is_answered or op.kind == "read":
            ops.append(op)
        elif op.value in values:
            ops.append(replace(op, version=values.index(op.value) + 1))
    return ops
