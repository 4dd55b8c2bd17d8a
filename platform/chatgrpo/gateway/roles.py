"""Who may do what: permissions are the atoms, a role is a set of them, a key may hold fewer than its role gives."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class Permission(StrEnum):
    MODELS_READ = "models:read"
    CHAT = "chat:write"
    CONVERSATIONS_READ = "conversations:read"
    CONVERSATIONS_WRITE = "conversations:write"
    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    SYSTEM_READ = "system:read"
    SYSTEM_WRITE = "system:write"
    KEYS_MANAGE = "keys:manage"  # of the own tenant
    TENANTS_MANAGE = "tenants:manage"  # keys of every tenant


class Role(StrEnum):
    """Each role can do what the one before it can."""

    VIEWER = "viewer"
    USER = "user"
    TRAINER = "trainer"
    OPERATOR = "operator"
    ADMIN = "admin"


_VIEWER = frozenset(
    {Permission.MODELS_READ, Permission.CONVERSATIONS_READ, Permission.JOBS_READ, Permission.SYSTEM_READ}
)
_USER = _VIEWER | {Permission.CHAT, Permission.CONVERSATIONS_WRITE}
_TRAINER = _USER | {Permission.JOBS_WRITE}
_OPERATOR = _TRAINER | {Permission.SYSTEM_WRITE, Permission.KEYS_MANAGE}

PERMISSIONS: Mapping[Role, frozenset[Permission]] = MappingProxyType(
    {
        Role.VIEWER: _VIEWER,
        Role.USER: _USER,
        Role.TRAINER: _TRAINER,
        Role.OPERATOR: _OPERATOR,
        Role.ADMIN: frozenset(Permission),
    }
)
