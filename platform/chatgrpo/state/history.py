"""A conversation as a log, in pure functions: what each act appends, and what of the log is visible.

Record 0 says how the conversation began. Every later record is a message (one version each), a new context, or a
rollback. Nothing is rewritten: a rollback to version v is a record that says which ranges of versions are visible from
now on, so the past can still be read, forked and rolled forward to. Each record points at the last rollback and the
last context before it, which makes any version readable in three look-ups however long the log is.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from chatgrpo.messages import Message
from chatgrpo.state.store import CorruptState, Head, Key, Record, Write

CREATED: Final = "created"
MESSAGE: Final = "message"
CONTEXT: Final = "context"
ROLLBACK: Final = "rollback"

_COMPACT: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
MAX_RECENT_APPENDS = 8
"""Append ids a head remembers: a retried append is recognised while at most this many others came between."""

Ranges = tuple[tuple[int, int], ...]
"""Visible versions, as inclusive ranges in rising order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message of a conversation. `version` is the conversation's version that it made."""

    version: int
    message: Message
    created_at: float
    num_tokens: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": self.version,
            **self.message.to_dict(),
            "created_at": self.created_at,
            "num_tokens": self.num_tokens,
            "metadata": dict(self.metadata),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A decoded record. `rollback_at` and `context_at` are the versions of the last rollback and context records at
    or before it (0: none), `num_messages` counts the messages visible at its version. `turn` is set on messages,
    `context` on created, context and rollback, `ranges` on rollback."""

    version: int
    kind: str
    at: float
    rollback_at: int
    context_at: int
    num_messages: int
    turn: Turn | None = None
    context: Mapping[str, Any] | None = None
    ranges: Ranges = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a conversation's head says, decoded. `base` are the ranges visible at the last rollback, `num_messages` the
    visible messages, `recent` the newest append ids with the versions that they made."""

    version: int
    user_id: str | None
    context: Mapping[str, Any]
    created_at: float
    updated_at: float
    num_messages: int
    ttl_s: float | None
    forked_from: str | None
    rollback_at: int
    context_at: int
    base: Ranges
    recent: tuple[tuple[str, int], ...]

    @property
    def ranges(self) -> Ranges:
        return with_tail(self.base, self.rollback_at, self.version)


def with_tail(base: Ranges, rollback_at: int, version: int) -> Ranges:
    """Everything after the last rollback is visible on top of what that rollback left."""
    return (*base, (rollback_at + 1, version)) if version > rollback_at else base


def clip(ranges: Ranges, version: int) -> Ranges:
    """The part of the ranges at or before a version."""
    return tuple((start, min(stop, version)) for start, stop in ranges if start <= version)


def create(
    *,
    user_id: str | None,
    context: Mapping[str, Any],
    ttl_s: float | None,
    now: float,
    append_id: str,
    forked_from: str | None = None,
) -> Write:
    summary = Summary(
        version=0,
        user_id=user_id,
        context=context,
        created_at=now,
        updated_at=now,
        num_messages=0,
        ttl_s=ttl_s,
        forked_from=forked_from,
        rollback_at=0,
        context_at=0,
        base=(),
        recent=((append_id, 0),),
    )
    return Write(head=_head(summary), records=(_record(CREATED, now, (0, 0, 0), {"context": context}),), based_on=0)


def append(
    head: Head,
    summary: Summary,
    turns: Sequence[tuple[Message, int, Mapping[str, Any]]],
    *,
    now: float,
    append_id: str,
    context: Mapping[str, Any] | None = None,
) -> Write:
    """One record for each (message, tokens, metadata), after a context record when the context changes with them."""
    records = []
    context_at = summary.context_at
    if context is not None:
        context_at = summary.version + 1
        pointers = (summary.rollback_at, context_at, summary.num_messages)
        records.append(_record(CONTEXT, now, pointers, {"context": context}))
    for count, (message, num_tokens, metadata) in enumerate(turns, start=summary.num_messages + 1):
        body = {"m": message.to_dict(), "n": num_tokens, "x": dict(metadata)}
        records.append(_record(MESSAGE, now, (summary.rollback_at, context_at, count), body))
    version = summary.version + len(records)
    new = _changed(
        summary,
        version=version,
        updated_at=now,
        num_messages=summary.num_messages + len(turns),
        context_at=context_at,
        context=summary.context if context is None else context,
        recent=_remember(summary, append_id, version),
    )
    return Write(head=_head(new), records=tuple(records), based_on=head.seq)


def fork(
    source: Summary, turns: Sequence[Turn], *, context: Mapping[str, Any], origin: str, now: float, append_id: str
) -> Write:
    """A new log that begins with copies of the turns, in one write."""
    first = create(
        user_id=source.user_id,
        context=context,
        ttl_s=source.ttl_s,
        now=now,
        append_id=append_id,
        forked_from=origin,
    )
    if not turns:
        return first
    copied = [(turn.message, turn.num_tokens, turn.metadata) for turn in turns]
    began = decode_head(Key("", "", ""), first.head)
    rest = append(first.head, began, copied, now=now, append_id=append_id)
    return Write(head=rest.head, records=first.records + rest.records, based_on=0)


def rollback(
    head: Head,
    summary: Summary,
    *,
    ranges: Ranges,
    context: Mapping[str, Any],
    num_messages: int,
    now: float,
    append_id: str,
) -> Write:
    """A new version at which `ranges` are visible and `context` holds."""
    version = summary.version + 1
    record = _record(ROLLBACK, now, (version, version, num_messages), {"context": context, "ranges": ranges})
    new = _changed(
        summary,
        version=version,
        updated_at=now,
        num_messages=num_messages,
        rollback_at=version,
        context_at=version,
        context=context,
        base=ranges,
        recent=_remember(summary, append_id, version),
    )
    return Write(head=_head(new), records=(record,), based_on=head.seq)


def decode_head(key: Key, head: Head) -> Summary:
    body = _unpack(head.data, key, "head")
    return Summary(
        version=head.version,
        user_id=head.owner or None,
        context=body["context"],
        created_at=body["created_at"],
        updated_at=body["updated_at"],
        num_messages=body["num_messages"],
        ttl_s=body["ttl_s"],
        forked_from=body["forked_from"],
        rollback_at=body["rollback_at"],
        context_at=body["context_at"],
        base=_ranges(body["base"]),
        recent=tuple((i, v) for i, v in body["recent"]),
    )


def decode(key: Key, record: Record) -> Entry:
    """Decodes once and remembers it in the record. Raises CorruptState naming the record."""
    if record.decoded is None:
        record.decoded = _entry(key, record)
    return record.decoded  # type: ignore[no-any-return]


def _entry(key: Key, record: Record) -> Entry:
    body = decode_body(key, record)
    turn = None
    if body["k"] == MESSAGE:
        turn = Turn(
            version=record.version,
            message=Message.from_dict(body["m"]),
            created_at=body["t"],
            num_tokens=body["n"],
            metadata=body["x"],
        )
    return Entry(
        version=record.version,
        kind=body["k"],
        at=body["t"],
        rollback_at=body["p"][0],
        context_at=body["p"][1],
        num_messages=body["p"][2],
        turn=turn,
        context=body.get("context"),
        ranges=_ranges(body.get("ranges", ())),
    )


def decode_body(key: Key, record: Record) -> dict[str, Any]:
    """A packed record of any log. Raises CorruptState naming it."""
    return _unpack(record.data, key, f"record {record.version}")


def _remember(summary: Summary, append_id: str, version: int) -> tuple[tuple[str, int], ...]:
    return (*summary.recent, (append_id, version))[-MAX_RECENT_APPENDS:]


def _changed(summary: Summary, **changes: Any) -> Summary:
    fields = {name: getattr(summary, name) for name in Summary.__dataclass_fields__}
    return Summary(**(fields | changes))


def _head(summary: Summary) -> Head:
    body = {name: getattr(summary, name) for name in Summary.__dataclass_fields__ if name not in {"version", "user_id"}}
    return Head(
        version=summary.version,
        data=pack(body),
        owner=summary.user_id or "",
        expires_at=None if summary.ttl_s is None else summary.updated_at + summary.ttl_s,
    )


def _record(kind: str, at: float, pointers: tuple[int, int, int], body: Mapping[str, Any]) -> bytes:
    """`pointers`: rollback_at, context_at, num_messages."""
    return pack({"k": kind, "t": at, "p": pointers, **body})


def pack(body: Mapping[str, Any]) -> bytes:
    """JSON after a checksum of eight hex digits: a flipped bit is noticed, not served."""
    data = _COMPACT.encode(body).encode()
    return b"%08x" % zlib.crc32(data) + data


def _unpack(data: bytes, key: Key, what: str) -> dict[str, Any]:
    try:
        return unpack(data)
    except ValueError as error:
        raise CorruptState(
            f"{key.space} {key.id}: {what} cannot be read ({error}); restore the database from a backup, "
            "or delete the conversation"
        ) from error


def unpack(data: bytes) -> dict[str, Any]:
    """Raises ValueError when the checksum or the JSON does not hold."""
    if data[:8] != b"%08x" % zlib.crc32(data[8:]):
        raise ValueError("checksum mismatch")
    return json.loads(data[8:])  # type: ignore[no-any-return]


def _ranges(value: Sequence[Sequence[int]]) -> Ranges:
    return tuple((int(start), int(stop)) for start, stop in value)
