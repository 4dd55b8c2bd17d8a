"""Reading what is visible of a conversation: the newest turns from a cached window, older ones from the store."""

from __future__ import annotations

from collections.abc import Sequence
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

    def has_room(self, num_messages: int, num_tokens: int) -> bool:
        """Whether so much in all is still within the limits."""
        return (self.max_messages is None or num_messages <= self.max_messages) and (
            self.max_tokens is None or num_tokens <= self.max_tokens
        )


def summary_of(log: Log) -> Summary:
    """The decoded head, decoded once for each cached log."""
    summary = log.memo.get(Summary)
    if summary is None:
        summary = log.memo[Summary] = history.decode_head(log.key, log.head)
    return summary


def turn_of(log: Log, record: Record, ranges: Ranges) -> Turn | None:
    """The message in the record, if it is one and lies in the ranges."""
    if not any(start <= record.version <= stop for start, stop in ranges):
        return None
    return history.decode(log.key, record).turn


async def newest(tiers: TieredStore, log: Log, bound: Bound) -> tuple[tuple[Turn, ...], bool]:
    """The newest visible turns within the bound, oldest first, and whether they are all there are. Nothing older than
    wanted is decoded."""
    summary = summary_of(log)
    ranges = summary.ranges
    chosen: list[Turn] = []
    num_tokens = 0
    records: Sequence[Record] = log.records
    first_version = records[0].version if records else summary.version + 1
    while bound.has_room(len(chosen) + 1, num_tokens):
        for record in reversed(records):
            if not bound.has_room(len(chosen) + 1, num_tokens):
                break
            turn = turn_of(log, record, ranges)
            if turn is None:
                continue
            num_tokens += turn.num_tokens
            if bound.has_room(len(chosen) + 1, num_tokens):
                chosen.append(turn)
        ranges = history.clip(ranges, first_version - 1)
        if not ranges:
            break
        stop = ranges[-1][1] + 1
        first_version = max(ranges[-1][0], stop - CHUNK)
        records = await _read(tiers, log, first_version, stop) if bound.has_room(len(chosen) + 1, num_tokens) else ()
    return tuple(reversed(chosen)), len(chosen) == summary.num_messages


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
            records = await _read(tiers, log, position, end)
            turns += [turn for turn in (turn_of(log, record, ranges) for record in records) if turn is not None]
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
