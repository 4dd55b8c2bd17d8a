"""The durable store: named append-only logs with a small mutable head, written by compare-and-set.

A log is records 0..version and a head. Every commit gets the next number of one store-wide sequence, `seq`, so
commits of all logs are totally ordered; a log that was deleted and created again never repeats a `seq`. A writer plans
a `Write` from the head it has read and the store takes it only if that head is still the current one. Stores know
nothing of conversations: `data` is opaque to them. What conversations, feedback, snapshots and the audit trail mean
is decided by pure functions above this line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from chatgrpo.errors import PlatformError


class CorruptState(PlatformError):
    """A stored value cannot be read back. It is never skipped in silence: the message names the log and the record."""

    code = "corrupt_state"


class Key(NamedTuple):
    """`space` is the kind of log: conversation, feedback, snapshot, audit."""

    tenant: str
    space: str
    id: str

    def __str__(self) -> str:
        return "/".join(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """`version` is the number of the last record. `owner` and `expires_at` (seconds since the epoch) are indexed.
    `seq` is given by the store at commit; 0 means not committed yet."""

    version: int
    data: bytes
    owner: str = ""
    expires_at: float | None = None
    seq: int = 0


@dataclass(slots=True, eq=False)
class Record:
    """`decoded` is the reader's memo, so that a cached record is decoded once."""

    version: int
    data: bytes
    decoded: Any = None


@dataclass(slots=True, eq=False)
class Log:
    """A head and the last records of a log, oldest first, as of one moment. `memo` belongs to the reader; `is_cut`
    says that older records were left out because of their size."""

    key: Key
    head: Head
    records: tuple[Record, ...]
    is_cut: bool = False
    memo: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Appends `records` after the head with `seq == based_on` (0: the log must not exist) and sets the new head.
    Invariant: head.version == previous version + len(records), counting an absent log's version as -1."""

    head: Head
    records: tuple[bytes, ...]
    based_on: int


@dataclass(frozen=True, slots=True)
class Change:
    """Log `key` changed in commit `seq`."""

    key: Key
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Versions of many logs at one instant: every commit up to `seq` is in, none after it."""

    seq: int
    versions: Mapping[str, int]


OnChange = Callable[[Change | None], None]
"""Called with every change, or with None when changes may have been missed and everything cached must go."""


class Watch(Protocol):
    """News of commits, for caches. All commits up to `applied` have been told."""

    @property
    def applied(self) -> int: ...

    @property
    def is_exact(self) -> bool:
        """True when `refresh` leaves nothing untold that was committed before it, by whatever process."""
        ...

    def refresh(self) -> None:
        """Tells what can be told without waiting."""
        ...

    async def close(self) -> None: ...


class Store(Protocol):
    """Implementations: memory, sqlite, redis. All raise Unavailable when the backend cannot be reached in time or
    is out of space, and CorruptState for what cannot be read."""

    async def append(self, key: Key, write: Write, *, durable: bool = True) -> int:
        """Commits and returns the commit's `seq`. Raises Conflict with the current version (-1: absent) when
        `write.based_on` is not the current head's `seq`. With `durable`, a crash after the return loses nothing."""
        ...

    async def tail(self, key: Key, count: int, *, unless: int = 0) -> Log | None:
        """Head and last `count` records, read together; None when absent. When the head's `seq` equals `unless`
        the records are left out: the caller has them."""
        ...

    async def read(self, key: Key, start: int, stop: int) -> tuple[Record, ...]:
        """Records of versions in [start, stop) that exist, oldest first."""
        ...

    async def delete(self, key: Key) -> bool:
        """Removes head and records for good; False when there was nothing."""
        ...

    async def list(
        self, tenant: str, space: str, *, owner: str | None = None, before: str | None = None, limit: int = 50
    ) -> Sequence[tuple[Key, Head]]:
        """Logs by id, descending (ULIDs: newest first), ids below `before` only."""
        ...

    async def expired(self, now: float, limit: int) -> Sequence[Key]:
        """Logs with `expires_at <= now`, longest expired first."""
        ...

    async def cut(self, tenant: str, space: str, *, owner: str | None = None) -> Cut:
        """The versions of all logs of a tenant's space at one instant, while writers go on."""
        ...

    async def watch(self, on_change: OnChange) -> Watch: ...

    async def ping(self) -> None:
        """Raises Unavailable when the store does not answer."""
        ...

    async def close(self) -> None: ...
