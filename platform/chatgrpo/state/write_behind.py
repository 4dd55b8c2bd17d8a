"""Writes that were acknowledged before they are durable: `eventual` only, bounded, drained on shutdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from chatgrpo.errors import NotFound
from chatgrpo.state.copies import copy_of
from chatgrpo.state.store import Key, Log, Record, Write

Plan = Callable[[Log | None], Write | None]
"""Given the newest log (None: absent), what to write; None: nothing. May raise; it is called again on newer state."""


@dataclass(slots=True, eq=False)
class Pending:
    """What waits for one log: the plans in order, and the log as it will be if nobody else writes first."""

    log: Log
    plans: list[Plan] = field(default_factory=list)


def after(key: Key, log: Log | None, write: Write, *, seq: int) -> Log:
    """The log once the write is in."""
    start = write.head.version - len(write.records) + 1
    added = tuple(Record(start + i, data) for i, data in enumerate(write.records))
    return copy_of(key, replace(write.head, seq=seq), (log.records if log else ()) + added)


def joined(key: Key, plans: list[Plan]) -> Plan:
    """One plan that does what the plans do one after the other, in one write. A plan whose log is gone is dropped with
    it; what it would have added was never promised to last."""

    def plan(log: Log | None) -> Write | None:
        now, last = log, None
        records: list[bytes] = []
        for each in plans:
            try:
                write = each(now)
            except NotFound:
                return None
            if write is not None:
                now = after(key, now, write, seq=now.head.seq if now else 0)
                records.extend(write.records)
                last = write
        if last is None:
            return None
        return Write(head=last.head, records=tuple(records), based_on=log.head.seq if log else 0)

    return plan
