"""L1: copies of recent windows of logs in this process, kept honest by news of changes.

* A copy comes in with the commit it was read at, and only if no newer change of its log was told while the read or
  write that brought it was on its way.
* A change that is told evicts an older copy; a gap in the news evicts everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from chatgrpo.state.eviction import Eviction
from chatgrpo.state.store import Change, Head, Key, Log, Record

WINDOW: Final = 256
"""Records of a log that a copy holds: a chat prompt rarely needs more, and a longer read goes to the store."""
MAX_COPY_BYTES: Final = 1 << 20
"""A copy holds the newest records up to this size, so that a few giant messages cannot fill the memory."""
_NEVER: Final = 1 << 62


@dataclass(slots=True, eq=False)
class OnItsWay:
    """A read or write of a log in progress; `told` is the newest commit of the log told meanwhile."""

    told: int = 0


class Copies:
    def __init__(self, eviction: Eviction) -> None:
        self._eviction = eviction
        self.touch = eviction.touch
        self._logs: dict[Key, Log] = {}
        self.peek: Callable[[tuple[str, str, str]], Log | None] = self._logs.get  # type: ignore[assignment]
        self._on_their_way: dict[Key, list[OnItsWay]] = {}

    def __len__(self) -> int:
        return len(self._logs)

    def get(self, key: Key) -> Log | None:
        log = self._logs.get(key)
        if log is not None and not self._eviction.touch(key):
            self.drop(key)
            return None
        return log

    def keep(self, log: Log, on_its_way: OnItsWay) -> None:
        known = self._logs.get(log.key)
        if on_its_way.told > log.head.seq or (known is not None and known.head.seq > log.head.seq):
            return
        self._logs[log.key] = log
        if known is None:
            for victim in self._eviction.admit(log.key):
                del self._logs[victim]  # type: ignore[arg-type]

    def drop(self, key: Key) -> None:
        if self._logs.pop(key, None) is not None:
            self._eviction.forget(key)

    def on_change(self, change: Change | None) -> None:
        """Takes the store's news."""
        if change is None:
            for key in list(self._logs):
                self.drop(key)
            for waiting in self._on_their_way.values():
                for on_its_way in waiting:
                    on_its_way.told = _NEVER
            return
        copy = self._logs.get(change.key)
        if copy is not None and copy.head.seq < change.seq:
            self.drop(change.key)
        for on_its_way in self._on_their_way.get(change.key, ()):
            on_its_way.told = max(on_its_way.told, change.seq)

    @contextmanager
    def listening(self, key: Key) -> Iterator[OnItsWay]:
        """Around every read or write whose outcome is to be kept."""
        on_its_way = OnItsWay()
        waiting = self._on_their_way.setdefault(key, [])
        waiting.append(on_its_way)
        try:
            yield on_its_way
        finally:
            waiting.remove(on_its_way)
            if not waiting:
                self._on_their_way.pop(key, None)


def copy_of(key: Key, head: Head, records: tuple[Record, ...]) -> Log:
    """A log with the newest of the records: WINDOW at most, within MAX_COPY_BYTES."""
    kept = records[-WINDOW:]
    size = 0
    for taken, record in enumerate(reversed(kept)):
        size += len(record.data)
        if size > MAX_COPY_BYTES:
            return Log(key, head, kept[len(kept) - taken :], is_cut=True)
    return Log(key, head, kept)


def has(log: Log, count: int) -> bool:
    """Whether the copy holds the newest `count` records, or all there are, or all it may."""
    return len(log.records) >= min(count, log.head.version + 1, WINDOW) or log.is_cut
