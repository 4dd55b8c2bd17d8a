"""Windows of limits in a file that processes map into their memory: a hash table of fixed size, made for being killed
at any moment. Nobody may touch it without holding the lock of `counters_file`.

An entry is a ring of the SLOTS + 1 slots that count and their sum, with a tag that tells whose it is and the time after
which nobody needs it. The sum is added up anew whenever a slot begins, so what a killed process left half-written lasts
for a twentieth of a window at most, and errs towards too many counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import struct
import tempfile
from pathlib import Path
from typing import Final

from chatgrpo.gateway.limits import SLOTS, Meter, Reading, slot_of

NUM_ENTRIES: Final = 2**16
WAYS: Final = 8
"""Entries where one key may lie."""
MAX_KNOWN: Final = 8192
"""Places of keys that one process remembers."""
_MAGIC: Final = b"cgrate01"
_HEADER: Final = struct.Struct("<8s16s40x")
_RING: Final = SLOTS + 1
_TAG: Final = 16
# Tag, end, newest slot, sum, counts.
_ENTRY: Final = struct.Struct(f"<{_TAG}sdqq{_RING}q")
_END: Final = struct.Struct("<d")
_NEWEST: Final = struct.Struct("<qq")
_COUNTS: Final = struct.Struct(f"<{_RING}q")
_COUNT: Final = struct.Struct("<q")
_AT_END, _AT_NEWEST, _AT_SUM, _AT_COUNTS = _TAG, _TAG + 8, _TAG + 16, _TAG + 24


class TableFull(Exception):
    """More keys are in use than there is room for."""


class WindowTable:
    """Raises OSError when the file cannot be made or is not one of ours."""

    def __init__(self, path: Path) -> None:
        _make(path)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        size = _HEADER.size + NUM_ENTRIES * _ENTRY.size
        if len(self._map) != size or self._map[:8] != _MAGIC:
            raise OSError(f"{path} is not a file of counters; delete it")
        _, self._secret = _HEADER.unpack_from(self._map)
        self._known: dict[tuple[str, float], tuple[int, bytes]] = {}

    def close(self) -> None:
        self._map.close()

    def read(self, meter: Meter, now: float) -> Reading:
        """Raises TableFull."""
        at = self._place(meter, now)
        newest, used = self._advance(at, slot_of(now, meter.window_s))
        if used + meter.cost <= meter.limit:
            return Reading(used=used, oldest=newest - SLOTS)
        counts = _COUNTS.unpack_from(self._map, at + _AT_COUNTS)
        slots = range(newest - SLOTS, newest + 1)
        return Reading(used=used, oldest=next((s for s in slots if counts[s % _RING] > 0), newest))

    def count(self, meter: Meter, now: float) -> None:
        """After `read` at the same time."""
        at = self._place(meter, now)
        newest, used = _NEWEST.unpack_from(self._map, at + _AT_NEWEST)
        _END.pack_into(self._map, at + _AT_END, now + 2 * meter.window_s)
        self._add(at, newest, used, meter.cost)

    def give_back(self, meter: Meter, amount: int, *, taken_at: float, now: float) -> None:
        at = self._place(meter, now)
        newest, used = self._advance(at, slot_of(now, meter.window_s))
        slot = slot_of(taken_at, meter.window_s)
        if newest - SLOTS <= slot <= newest:
            self._add(at, slot, used, -amount)

    def _add(self, at: int, slot: int, used: int, amount: int) -> None:
        where = at + _AT_COUNTS + 8 * (slot % _RING)
        (count,) = _COUNT.unpack_from(self._map, where)
        _COUNT.pack_into(self._map, where, count + amount)
        _COUNT.pack_into(self._map, at + _AT_SUM, used + amount)

    def _advance(self, at: int, slot: int) -> tuple[int, int]:
        """(newest slot, sum of all that count). A clock that went back counts in the newest slot."""
        newest, used = _NEWEST.unpack_from(self._map, at + _AT_NEWEST)
        if slot <= newest:
            return newest, used
        counts = list(_COUNTS.unpack_from(self._map, at + _AT_COUNTS))
        for over in range(max(newest, slot - _RING) + 1, slot + 1):
            counts[over % _RING] = 0
        used = sum(counts)
        _COUNTS.pack_into(self._map, at + _AT_COUNTS, *counts)
        _NEWEST.pack_into(self._map, at + _AT_NEWEST, slot, used)
        return slot, used

    def _place(self, meter: Meter, now: float) -> int:
        name = meter.key, meter.window_s
        known = self._known.get(name)
        if known is not None and self._map[known[0] : known[0] + _TAG] == known[1]:
            return known[0]
        tag = hashlib.blake2b(f"{meter.window_s}|{meter.key}".encode(), digest_size=_TAG, key=self._secret).digest()
        first = int.from_bytes(tag[:4], "little") % (NUM_ENTRIES // WAYS) * WAYS
        places = [_HEADER.size + (first + i) * _ENTRY.size for i in range(WAYS)]
        at = next((place for place in places if self._map[place : place + _TAG] == tag), None)
        if at is None:
            at = self._take_free(places, tag, meter, now)
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[name] = at, tag
        return at

    def _take_free(self, places: list[int], tag: bytes, meter: Meter, now: float) -> int:
        at = next((place for place in places if _END.unpack_from(self._map, place + _AT_END)[0] <= now), None)
        if at is None:
            raise TableFull
        _ENTRY.pack_into(self._map, at, tag, 0.0, slot_of(now, meter.window_s), 0, *[0] * _RING)
        _END.pack_into(self._map, at + _AT_END, now + 2 * meter.window_s)
        return at


def _make(path: Path) -> None:
    """Linked into place whole, with its space on the disk: two that start together, also in one process, must not make
    two, and a full disk must be an error here, not a signal later."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # It goes with its last name: the file itself stays under `path`.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.") as file:
        os.posix_fallocate(file.fileno(), 0, _HEADER.size + NUM_ENTRIES * _ENTRY.size)
        file.write(_HEADER.pack(_MAGIC, os.urandom(16)))
        file.flush()
        with contextlib.suppress(FileExistsError):
            os.link(file.name, path)
