"""Snapshots of all of a tenant's conversations, and the way back to one."""

from __future__ import annotations

from collections.abc import Sequence

from chatgrpo.errors import NotFound
from chatgrpo.state.branching import Branching
from chatgrpo.state.reading import Reading
from chatgrpo.state.snapshots import Restored, Snapshot, restore


class Rewinding(Reading, Branching):
    """A snapshot is a consistent cut; a restore rolls every conversation back to it, as a new version."""

    async def create_snapshot(self, *, tenant: str, user_id: str | None = None, name: str = "") -> Snapshot:
        """The versions of all of a tenant's (a user's) conversations at one instant, while writers go on."""
        await self.tiers.flush()
        return await self._snapshots.take(tenant, user_id=user_id, name=name)

    async def list_snapshots(self, *, tenant: str) -> Sequence[Snapshot]:
        """Newest first."""
        return await self._snapshots.list(tenant)

    async def restore_snapshot(self, snapshot_id: str, *, tenant: str, by: str | None = None) -> Restored:
        """Shows again what every conversation in the snapshot's scope showed then. Raises NotFound."""
        snapshot = await self._snapshots.get(tenant, snapshot_id)
        before = await self.create_snapshot(tenant=tenant, user_id=snapshot.user_id, name=f"before {snapshot_id}")
        restored = await restore(self, snapshot, before)
        await self._note("snapshot.restore", tenant, snapshot_id, by, changed=restored.num_changed, undo=before.id)
        return restored

    async def delete_snapshot(self, snapshot_id: str, *, tenant: str) -> None:
        """Raises NotFound."""
        if not await self._snapshots.delete(tenant, snapshot_id):
            raise NotFound(f"there is no snapshot {snapshot_id}")
