"""Snapshots: the versions of many conversations at one instant, and the way back to them.

Logs only grow, so a snapshot need not copy anything: it names versions, taken in one cut while writers go on.
Restoring rolls each conversation back to its version, as a new version: nothing that came later is destroyed, and the
state before the restore is itself a snapshot. What was deleted for good stays deleted: its id is taken out of every
snapshot.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from ulid import ULID

from chatgrpo.clock import Clock
from chatgrpo.errors import Conflict, InvalidRequest, NotFound
from chatgrpo.state import history
from chatgrpo.state.consistency import Consistency
from chatgrpo.state.conversation import Appended, Conversation
from chatgrpo.state.store import CorruptState, Head, Key, Store, Write

SPACE: Final = "snapshot"
MAX_LISTED: Final = 1000
AT_ONCE: Final = 32
"""Conversations that a restore works on at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """`seq`: every commit of the store up to it is in, none after. `user_id` None: all conversations of the tenant."""

    id: str
    tenant: str
    user_id: str | None
    name: str
    created_at: float
    seq: int
    versions: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "user_id": self.user_id,
            "name": self.name,
            "created_at": self.created_at,
            "num_conversations": len(self.versions),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """`num_changed` conversations were rolled back, among them `num_emptied` that began after the snapshot; `gone` were
    deleted meanwhile. `undo` is the snapshot of the state before."""

    num_changed: int
    num_emptied: int
    gone: tuple[str, ...]
    undo: str


class Restorable(Protocol):
    """The part of `Conversations` that a restore needs."""

    async def get(self, conversation_id: str, *, tenant: str, level: Consistency) -> Conversation: ...

    async def rollback(self, conversation_id: str, to_version: int, *, tenant: str) -> Appended: ...


async def restore(conversations: Restorable, snapshot: Snapshot, before: Snapshot) -> Restored:
    """Brings every conversation in the scope back to the snapshot. `before` was taken just now: it is the way back, and
    tells which conversations began later; those are rolled back to having no messages."""
    begun_later = before.versions.keys() - snapshot.versions.keys()
    targets = {**snapshot.versions, **dict.fromkeys(begun_later, 0)}
    changed: list[str] = []
    gone: list[str] = []

    async def restore_one(id_: str, version: int) -> None:
        try:
            now = await conversations.get(id_, tenant=snapshot.tenant, level=Consistency.STRONG)
            if now.version == version or (id_ in begun_later and not now.num_messages):
                return
            await conversations.rollback(id_, version, tenant=snapshot.tenant)
        except (NotFound, InvalidRequest):
            gone.append(id_)  # deleted meanwhile, or deleted and begun anew with fewer versions
        else:
            changed.append(id_)

    ids = sorted(targets)
    for start in range(0, len(ids), AT_ONCE):
        await asyncio.gather(*(restore_one(id_, targets[id_]) for id_ in ids[start : start + AT_ONCE]))
    return Restored(
        num_changed=len(changed),
        num_emptied=len(begun_later.intersection(changed)),
        gone=tuple(sorted(gone)),
        undo=before.id,
    )


class SnapshotLog:
    """Snapshots in the store. `retention`: how many a tenant keeps; the oldest go first."""

    def __init__(self, store: Store, *, clock: Clock, retention: int) -> None:
        self._store = store
        self._clock = clock
        self._retention = retention

    async def take(self, tenant: str, *, user_id: str | None, name: str) -> Snapshot:
        now = self._clock.now()
        cut = await self._store.cut(tenant, "conversation", owner=user_id)
        snapshot = Snapshot(
            id=str(ULID()),
            tenant=tenant,
            user_id=user_id,
            name=name,
            created_at=now,
            seq=cut.seq,
            versions=cut.versions,
        )
        head = Head(version=0, data=_pack(snapshot), owner=user_id or "")
        await self._store.append(Key(tenant, SPACE, snapshot.id), Write(head=head, records=(b"",), based_on=0))
        for old in (await self.list(tenant))[self._retention :]:
            await self.delete(tenant, old.id)
        return snapshot

    async def list(self, tenant: str) -> Sequence[Snapshot]:
        """Newest first."""
        return [_unpack(key, head) for key, head in await self._store.list(tenant, SPACE, limit=MAX_LISTED)]

    async def get(self, tenant: str, snapshot_id: str) -> Snapshot:
        log = await self._store.tail(Key(tenant, SPACE, snapshot_id), 0)
        if log is None:
            raise NotFound(f"there is no snapshot {snapshot_id}")
        return _unpack(log.key, log.head)

    async def delete(self, tenant: str, snapshot_id: str) -> bool:
        return await self._store.delete(Key(tenant, SPACE, snapshot_id))

    async def forget(self, tenant: str, conversation_ids: Collection[str]) -> None:
        """Takes ids out of all snapshots, in place."""
        for snapshot in await self.list(tenant):
            while not snapshot.versions.keys().isdisjoint(conversation_ids):
                try:
                    await self._forget_in(Key(tenant, SPACE, snapshot.id), conversation_ids)
                except Conflict:
                    continue  # another deletion took its id out meanwhile
                break

    async def _forget_in(self, key: Key, conversation_ids: Collection[str]) -> None:
        log = await self._store.tail(key, 0)
        if log is None:
            return
        snapshot = _unpack(key, log.head)
        left = {id_: version for id_, version in snapshot.versions.items() if id_ not in conversation_ids}
        data = _pack(snapshot, left)
        head = Head(version=log.head.version + 1, data=data, owner=log.head.owner)
        await self._store.append(key, Write(head=head, records=(b"",), based_on=log.head.seq))


def _pack(snapshot: Snapshot, versions: Mapping[str, int] | None = None) -> bytes:
    kept = snapshot.versions if versions is None else versions
    packed = b64encode(zlib.compress(json.dumps(dict(kept)).encode())).decode()
    body = {name: getattr(snapshot, name) for name in ("user_id", "name", "created_at", "seq")}
    return history.pack({**body, "versions": packed})


def _unpack(key: Key, head: Head) -> Snapshot:
    try:
        body = history.unpack(head.data)
        versions = json.loads(zlib.decompress(b64decode(body.pop("versions"))))
    except (ValueError, zlib.error) as error:
        raise CorruptState(f"snapshot {key.id} cannot be read ({error}); delete it") from error
    return Snapshot(id=key.id, tenant=key.tenant, versions=versions, **body)
