"""The audit trail: who did what to what, when, in a hash chain that shows tampering.

Entry n carries the hash of entry n - 1; its own hash covers that and its body. Change, remove or reorder one and
every hash after it is wrong. With a `secret` the hashes are HMACs, so that not even somebody who may write to the
database can make a chain that verifies. Cutting off the end leaves a shorter chain that is right in itself: keep an
`Anchor` (number of entries and last hash) elsewhere and verify against it. Bodies hold ids and facts, no message text.

    trail = AuditTrail(store)
    await trail.record(who="key:ops", what="conversation.delete", tenant="t", target="01J...")
    report = await verify("state.db")          # or a Store; report.is_intact, report.problem
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from chatgrpo.clock import Clock, SystemClock
from chatgrpo.errors import Conflict, Unavailable
from chatgrpo.state import history
from chatgrpo.state.store import CorruptState, Head, Key, Record, Store, Write
from chatgrpo.state.stores import open_store

logger = logging.getLogger(__name__)

TRAIL: Final = Key("_platform", "audit", "trail")
FIRST: Final = "0" * 64
"""What the first entry names as the hash before it."""
CHUNK: Final = 500
MAX_BATCH: Final = 256
MAX_ATTEMPTS: Final = 100
NOTE_S: Final = 0.02
"""How long a noted entry waits for others before they are written together."""
_CANONICAL: Final = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))
MAX_NOTED: Final = 4096
"""Noted entries that may wait; beyond, whoever acts waits with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """`at` is in seconds since the epoch and never goes back along the chain."""

    number: int
    at: float
    who: str
    what: str
    tenant: str
    target: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    previous: str = FIRST
    hash: str = ""

    def body(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "hash"}

    def to_dict(self) -> dict[str, Any]:
        return {**self.body(), "hash": self.hash}


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """The end of the chain at some moment: `count` entries, the last with `hash`."""

    count: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """`problem` says what is wrong with the first bad entry; None when the whole chain holds."""

    count: int
    problem: str | None
    anchor: Anchor

    @property
    def is_intact(self) -> bool:
        return self.problem is None


class AuditSink(Protocol):
    """Where the parts of the platform report what they did."""

    async def record(
        self, *, who: str, what: str, tenant: str, target: str, facts: Mapping[str, Any] | None = None
    ) -> None: ...


class AuditNotes(AuditSink, Protocol):
    """One that takes entries without making the caller wait for the disk."""

    async def note(
        self, *, who: str, what: str, tenant: str, target: str, facts: Mapping[str, Any] | None = None
    ) -> None: ...


@dataclass(slots=True, eq=False)
class _Waiting:
    """`done` is None for a noted entry: nobody waits."""

    fields: dict[str, Any]
    done: asyncio.Future[None] | None


class AuditTrail:
    """Records that arrive together are written together, in the order in which they came. Any number of processes may
    write to one trail: the store decides who is next."""

    def __init__(self, store: Store, *, clock: Clock | None = None, secret: bytes | None = None) -> None:
        self._store = store
        self._clock = clock or SystemClock()
        self._secret = secret
        self._waiting: list[_Waiting] = []
        self._writer: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_due = self._has_failed = False
        self._end: tuple[AuditEntry | None, int] | None = None

    async def record(
        self, *, who: str, what: str, tenant: str, target: str, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Returns when the entry is durable, and with it every entry noted here before. Raises Unavailable when it
        cannot be written."""
        fields = {"who": who, "what": what, "tenant": tenant, "target": target, "facts": dict(facts or {})}
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(fields, done))
        self._start_writing()
        await done

    async def note(
        self, *, who: str, what: str, tenant: str, target: str, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Returns at once; the entry is written within NOTE_S and one write of the store, together with what came
        meanwhile. A process that is killed before that loses it. While the store fails, or MAX_NOTED entries wait, this
        is `record`: nothing is noted that nobody can write."""
        if self._has_failed or len(self._waiting) >= MAX_NOTED:
            await self.record(who=who, what=what, tenant=tenant, target=target, facts=facts)
            return
        fields = {"who": who, "what": what, "tenant": tenant, "target": target, "facts": dict(facts or {})}
        self._waiting.append(_Waiting(fields, None))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(NOTE_S, self._start_writing)

    async def flush(self) -> None:
        """Writes what was noted. Raises Unavailable when that fails; the entries are kept for the next attempt."""
        while self._waiting or (self._writer is not None and not self._writer.done()):
            self._start_writing()
            assert self._writer is not None, "it was started above"
            await asyncio.shield(self._writer)
            if self._waiting and self._has_failed:
                raise Unavailable(f"{len(self._waiting)} audit entries could not be written")

    async def query(
        self,
        *,
        who: str | None = None,
        what: str | None = None,
        tenant: str | None = None,
        target: str | None = None,
        since: float = 0.0,
        until: float = float("inf"),
        limit: int = 100,
    ) -> list[AuditEntry]:
        """Entries that match all that is given, oldest first. `what` matches whole names and, with a dot at its end,
        everything below: `conversation.`. `since` is found by bisection."""
        wanted = {"who": who, "tenant": tenant, "target": target}
        found: list[AuditEntry] = []
        async for entry in _entries(self._store, start=await self._first_since(since)):
            if entry.at >= until or len(found) >= limit:
                break
            if _is_named(entry, what) and all(value in {None, getattr(entry, name)} for name, value in wanted.items()):
                found.append(entry)
        return found

    async def newest(
        self, *, tenant: str | None = None, what: str | None = None, before: int | None = None, limit: int = 100
    ) -> list[AuditEntry]:
        """Entries that match, newest first; `before`: only those with a smaller number."""
        log = await self._store.tail(TRAIL, 0)
        end = log.head.version + 1 if log else 0
        stop = end if before is None else min(end, before)
        found: list[AuditEntry] = []
        while stop > 0 and len(found) < limit:
            start = max(0, stop - CHUNK)
            for record in reversed(await self._store.read(TRAIL, start, stop)):
                entry = _decode(record)
                if _is_named(entry, what) and tenant in {None, entry.tenant}:
                    found.append(entry)
            stop = start
        return found[:limit]

    async def anchor(self) -> Anchor:
        """The present end of the chain, to be kept where the database's owner cannot change it."""
        log = await self._store.tail(TRAIL, 1)
        if log is None:
            return Anchor(count=0, hash=FIRST)
        return Anchor(count=log.head.version + 1, hash=_decode(log.records[-1]).hash)

    async def verify(self, anchor: Anchor | None = None) -> Verification:
        return await _verify(self._store, anchor, self._secret)

    async def _first_since(self, since: float) -> int:
        log = await self._store.tail(TRAIL, 0)
        low, high = 0, log.head.version + 1 if log else 0
        while low < high:
            middle = (low + high) // 2
            (record,) = await self._store.read(TRAIL, middle, middle + 1)
            if _decode(record).at < since:
                low = middle + 1
            else:
                high = middle
        return low

    def _start_writing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._is_due = True
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._write_waiting())

    async def _write_waiting(self) -> None:
        # What is noted during a write waits for its own time, so that a slow disk is not asked again at once.
        while self._is_due and self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            self._is_due = bool(self._waiting)
            try:
                await self._write([waiting.fields for waiting in batch])
            except Exception as error:  # noqa: BLE001 (handed to whoever waits for the entry)
                self._fail([*batch, *self._waiting], error)
                return  # who acts next tries again
            self._has_failed = False
            for waiting in batch:
                if waiting.done is not None and not waiting.done.done():
                    waiting.done.set_result(None)

    def _fail(self, batch: list[_Waiting], error: Exception) -> None:
        """Tells those who wait; noted entries stay in line. Said once an outage: nobody else hears that they wait."""
        self._waiting = [waiting for waiting in batch if waiting.done is None]
        self._is_due = False
        if self._waiting and not self._has_failed:
            logger.error("audit entries wait for the store num=%d: %s", len(self._waiting), error)
        self._has_failed = True
        for waiting in batch:
            if waiting.done is not None and not waiting.done.done():
                waiting.done.set_exception(error)

    async def _write(self, batch: list[dict[str, Any]]) -> None:
        for attempt in range(MAX_ATTEMPTS):
            # Who wrote last knows the end; somebody else's entry since then shows as a conflict.
            last, seq = self._end or await self._read_end()
            entries = self._chained(batch, last)
            head = Head(version=entries[-1]["number"], data=history.pack({"hash": entries[-1]["hash"]}))
            records = tuple(map(history.pack, entries))
            self._end = None
            try:
                written = await self._store.append(TRAIL, Write(head=head, records=records, based_on=seq))
            except Conflict:
                if attempt == MAX_ATTEMPTS - 1:
                    raise
                continue
            self._end = AuditEntry(**entries[-1]), written
            return

    async def _read_end(self) -> tuple[AuditEntry | None, int]:
        log = await self._store.tail(TRAIL, 1)
        return (_decode(log.records[-1]), log.head.seq) if log else (None, 0)

    def _chained(self, batch: list[dict[str, Any]], last: AuditEntry | None) -> list[dict[str, Any]]:
        """The bodies of entries with their hashes. Plain dicts: this is done for every request that is audited."""
        number, at, previous = (last.number, last.at, last.hash) if last else (-1, 0.0, FIRST)
        now = self._clock.now()
        entries: list[dict[str, Any]] = []
        for fields in batch:
            number, at = number + 1, max(now, at)
            body = {"number": number, "at": at, **fields, "previous": previous}
            previous = _hash(body, self._secret)
            entries.append({**body, "hash": previous})
        return entries


def _is_named(entry: AuditEntry, what: str | None) -> bool:
    return what is None or entry.what == what or (what.endswith(".") and entry.what.startswith(what))


def hash_of(entry: AuditEntry, secret: bytes | None) -> str:
    return _hash(entry.body(), secret)


def _hash(body: Mapping[str, Any], secret: bytes | None) -> str:
    text = _CANONICAL.encode(body).encode()
    return hmac.new(secret, text, "sha256").hexdigest() if secret else hashlib.sha256(text).hexdigest()


async def verify(
    source: Store | str | Path, *, anchor: Anchor | None = None, secret: bytes | None = None
) -> Verification:
    """Checks a whole trail. `source` is a store or its address: the path of a SQLite file, or redis://..."""
    if not isinstance(source, str | Path):
        return await _verify(source, anchor, secret)
    store = await open_store(source)
    try:
        return await _verify(store, anchor, secret)
    finally:
        await store.close()


async def _verify(store: Store, anchor: Anchor | None, secret: bytes | None) -> Verification:
    count, last = 0, FIRST

    def verdict(problem: str | None) -> Verification:
        return Verification(count=count, problem=problem, anchor=Anchor(count=count, hash=last))

    log = await store.tail(TRAIL, 0)
    try:
        async for entry in _entries(store):
            if entry.number != count or entry.previous != last:
                return verdict(f"entry {count} does not follow the one before it")
            if not hmac.compare_digest(entry.hash, hash_of(entry, secret)):
                return verdict(f"entry {count} was changed, or hashed with another secret")
            count, last = count + 1, entry.hash
            if anchor is not None and count == anchor.count and last != anchor.hash:
                return verdict(f"entry {count - 1} is not the one that was anchored")
    except CorruptState as error:
        return verdict(str(error))
    if anchor is not None and count < anchor.count:
        return verdict(f"{anchor.count - count} entries are missing at the end")
    if log is not None and count < log.head.version + 1:
        return verdict(f"{log.head.version + 1 - count} entries are missing at the end")
    return verdict(None)


async def _entries(store: Store, *, start: int = 0) -> AsyncIterator[AuditEntry]:
    while records := await store.read(TRAIL, start, start + CHUNK):
        for record in records:
            yield _decode(record)
        start = records[-1].version + 1


def _decode(record: Record) -> AuditEntry:
    body = history.decode_body(TRAIL, record)
    try:
        return AuditEntry(**body)
    except TypeError as error:
        raise CorruptState(f"audit entry {record.version} has other fields than an entry: {error}") from error
