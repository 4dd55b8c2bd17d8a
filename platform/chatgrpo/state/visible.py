"""Reading what is visible of a conversation: the newest turns from a cached window, older ones from the store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chatgrpo.errors import NotFound
from chatgrpo.state import history
from chatgrpo.state.history import Entry, Ranges, Summary, Turn
from chatgrpo.state.store import CorruptState, Log, Record
from chatgrpo.state.tiered import TieredStore

CHUNK = 256
"""Records fetched at a time when a read goes beyond the cached window."""


@dataclass(frozen=True, slots=True)
class Bound:
    """How much of the end of a conversation is wanted. Both limits hold when both are given."""

    max_messages: int | None
    max_tokens: int | None

    def take(self, turns: Sequence[Turn]) -> tuple[tuple[Turn, ...], bool]:
        """The newest turns within the bound, and whether the bound (rather than the supply) ended them."""
        first = len(turns)
        if self.max_messages is not None:
            first = min(first, self.max_messages)
        chosen = turns[len(turns) - first :]
        if self.max_tokens is None:
            return tuple(chosen), first < len(turns) or first == self.max_messages
        budget = self.max_tokens
        for taken, turn in enumerate(reversed(chosen)):
            budget -= turn.num_tokens
            if budget < 0:
                return tuple(chosen[len(chosen) - taken :]), True
        return tuple(chosen), first < len(turns) or first == self.max_messages


def summary_of(log: Log) -> Summary:
    """The decoded head, decoded once for each cached log."""
    summary = log.memo.get(Summary)
    if summary is None:
        summary = log.memo[Summary] = history.decode_head(log.key, log.head)
    return summary


def turns_of(log: Log, records: Iterable[Record], ranges: Ranges) -> list[Turn]:
    """The messages among the records that lie in the ranges."""
    turns = []
    for record in records:
        if any(start <= record.version <= stop for start, stop in ranges):
            turn = history.decode(log.key, record).turn
            if turn is not None:
                turns.append(turn)
    return turns


async def newest(tiers: TieredStore, log: Log, bound: Bound) -> tuple[tuple[Turn, ...], bool]:
    """The newest visible turns within the bound, oldest first, and whether they are all there are."""
    summary = summary_of(log)
    ranges = summary.ranges
    turns = turns_of(log, log.records, ranges)
    first_version = log.records[0].version if log.records else summary.version + 1
    while True:
        chosen, is_bounded = bound.take(turns)
        ranges = history.clip(ranges, first_version - 1)
        if is_bounded or not ranges:
            return chosen, len(chosen) == summary.num_messages
        stop = ranges[-1][1] + 1
        start = max(ranges[-1][0], stop - CHUNK)
        turns = turns_of(log, await _read(tiers, log, start, stop), ranges) + turns
        first_version = start


async def visible_after(
    tiers: TieredStore, log: Log, *, after: int, limit: int, at_version: int | None = None
) -> tuple[Turn, ...]:
    """Up to `limit` visible turns with versions above `after`, oldest first, as of `at_version` (default: now)."""
    summary = summary_of(log)
    ranges = summary.ranges if at_version is None else (await state_at(tiers, log, at_version)).ranges
    turns: list[Turn] = []
    for start, stop in ranges:
        position = max(start, after + 1)
        while position <= stop and len(turns) < limit:
            end = min(position + CHUNK, stop + 1)
            turns += turns_of(log, await _read(tiers, log, position, end), ranges)
            position = end
    return tuple(turns[:limit])


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a version shows: its ranges, context and number of messages."""

    ranges: Ranges
    context: dict[str, object]
    num_messages: int


async def state_at(tiers: TieredStore, log: Log, version: int) -> State:
    """Three look-ups at most, however long the log. Precondition: 0 <= version <= head version."""
    entry = await _entry(tiers, log, version)
    base: Ranges = ()
    if entry.rollback_at:
        base = (await _entry(tiers, log, entry.rollback_at)).ranges
    context = (await _entry(tiers, log, entry.context_at)).context
    return State(
        ranges=history.with_tail(base, entry.rollback_at, version),
        context=dict(context or {}),
        num_messages=entry.num_messages,
    )


async def _entry(tiers: TieredStore, log: Log, version: int) -> Entry:
    (record,) = await _read(tiers, log, version, version + 1)
    return history.decode(log.key, record)


async def _read(tiers: TieredStore, log: Log, start: int, stop: int) -> Sequence[Record]:
    if log.records and log.records[0].version <= start:
        first = log.records[0].version
        return log.records[start - first : stop - first]
    records = await tiers.read(log.key, start, stop)
    if len(records) != stop - start:
        if await tiers.store.tail(log.key, 0) is None:
            raise NotFound(f"there is no {log.key.space} {log.key.id}; it was deleted meanwhile")
        raise CorruptState(
            f"{log.key.space} {log.key.id}: versions {start} to {stop - 1} are not all there; restore the database "
            "from a backup"
        )
    return records
