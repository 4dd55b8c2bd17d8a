"""On whose behalf a request acts, as its key says."""

from __future__ import annotations

from dataclasses import dataclass

from chatgrpo.gateway.roles import PERMISSIONS, Permission, Role

# The owner of everything while the platform runs open on loopback.
LOCAL_TENANT = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """`key_id` is None when no key was shown. `expires_at` is in seconds since the epoch."""

    tenant: str
    permissions: frozenset[Permission]
    role: Role | None = None
    key_id: str | None = None
    expires_at: float | None = None

    @property
    def who(self) -> str:
        """The name in the audit trail."""
        return f"key:{self.key_id}" if self.key_id else self.tenant or "anonymous"


LOCAL = Identity(tenant=LOCAL_TENANT, role=Role.ADMIN, permissions=PERMISSIONS[Role.ADMIN])
"""Whoever calls while no keys are asked for."""

ANONYMOUS = Identity(tenant="", permissions=frozenset())
"""Whoever calls a route that asks for no key."""
