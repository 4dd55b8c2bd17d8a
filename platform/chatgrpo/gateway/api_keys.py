"""API keys: made, listed, rotated, revoked; each change is a record in the key's log, so its history stays.

A minted key can never exceed its minter: not in permissions, not in tenant, not in life time. A key is looked up again
at most `RECHECK_S` after it was last seen, in every process, which is how revocation arrives everywhere.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from ulid import ULID

from chatgrpo.clock import Clock
from chatgrpo.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unauthenticated
from chatgrpo.gateway.identity import Identity
from chatgrpo.gateway.key_format import digest_of, key_id_of, new_key
from chatgrpo.gateway.roles import PERMISSIONS, Permission, Role
from chatgrpo.state import history
from chatgrpo.state.store import CorruptState, Head, Key, Store, Write

SPACE: Final = ("_platform", "api_keys")
RECHECK_S: Final = 0.5
"""Half of the second within which a revoked key must have stopped working."""
MAX_KNOWN: Final = 10_000
UNKNOWN: Final = "this key is not known, has expired or was revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What is stored of a key. `digests`: the secret's, and with rotation the former one's until the given time; times
    are seconds since the epoch."""

    key_id: str
    name: str
    tenant: str
    role: Role
    permissions: tuple[Permission, ...]
    created_at: float
    created_by: str
    expires_at: float | None = None
    revoked_at: float | None = None
    digests: tuple[tuple[str, float | None], ...] = ()

    def view(self) -> dict[str, Any]:
        """What may be shown: everything but the digests."""
        return {name: value for name, value in asdict(self).items() if name != "digests"}

    def identity(self) -> Identity:
        return Identity(
            tenant=self.tenant,
            role=self.role,
            permissions=frozenset(self.permissions),
            key_id=self.key_id,
            expires_at=self.expires_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Minted:
    """The only moment at which the key itself is known."""

    key: str
    stored: ApiKey


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A key as it was read at `checked`, by a monotonic clock."""

    checked: float
    stored: ApiKey
    identity: Identity


def permitted(minter: Identity, *, tenant: str, permissions: Iterable[Permission], expires_at: float | None) -> str:
    """Why `minter` must not make or change such a key; empty when it may."""
    if Permission.KEYS_MANAGE not in minter.permissions:
        return f"your key does not permit {Permission.KEYS_MANAGE}"
    if tenant != minter.tenant and Permission.TENANTS_MANAGE not in minter.permissions:
        return f"your key is of tenant {minter.tenant!r} and does not permit {Permission.TENANTS_MANAGE}"
    if beyond := sorted(set(permissions) - minter.permissions):
        return f"your key does not permit {', '.join(beyond)} itself"
    if minter.expires_at is not None and (expires_at is None or expires_at > minter.expires_at):
        return "your key expires earlier; give an expires_at that is not later than its own"
    return ""


class Keyring:
    """Keys over a store. `open_store` is awaited at the first use, on the loop that uses it."""

    def __init__(self, open_store: Callable[[], Awaitable[Store]], *, pepper: bytes, clock: Clock) -> None:
        self._open_store = open_store
        self._pepper = pepper
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._any_at = (-RECHECK_S, False)

    async def has_keys(self) -> bool:
        """Whether a key was ever made. Once true it stays true: revoking the last key must not open the door."""
        checked, found = self._any_at
        if not found and self._clock.monotonic() - checked >= RECHECK_S:
            now = self._clock.monotonic()
            found = bool(await (await self._open_store()).list(*SPACE, limit=1))
            self._any_at = (now, found)
        return found

    async def identify(self, key: str) -> Identity:
        """Raises Unauthenticated for a key that is malformed, unknown, expired or revoked; one message for all."""
        digest, now = digest_of(key, self._pepper), self._clock.monotonic()
        known = self._known.get(digest)
        if known is None or now - known.checked >= RECHECK_S:
            self._known.pop(digest, None)
            key_id = key_id_of(key)
            if key_id is None:
                raise Unauthenticated("this is not a key of the platform: it is cut off or mistyped")
            stored, _ = await self._find(key_id)
            if stored is None:
                raise Unauthenticated(UNKNOWN)
            known = _Known(checked=now, stored=stored, identity=stored.identity())
        if not self._is_valid(known.stored, digest):
            raise Unauthenticated(UNKNOWN)
        if digest not in self._known:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[digest] = known
        return known.identity

    async def create(
        self,
        minter: Identity,
        *,
        name: str,
        role: Role,
        tenant: str | None = None,
        permissions: Iterable[Permission] | None = None,
        expires_at: float | None = None,
    ) -> Minted:
        """Raises Forbidden when the key would exceed its minter, InvalidRequest when it would exceed its role."""
        tenant = tenant or minter.tenant
        granted = PERMISSIONS[role] if permissions is None else frozenset(permissions)
        if beyond := sorted(granted - PERMISSIONS[role]):
            raise InvalidRequest(f"role {role} does not have {', '.join(beyond)}", "permissions")
        if expires_at is not None and expires_at <= self._clock.now():
            raise InvalidRequest("lies in the past", "expires_at")
        if reason := permitted(minter, tenant=tenant, permissions=granted, expires_at=expires_at):
            raise Forbidden(f"a key cannot exceed the key that makes it: {reason}")
        key_id = str(ULID())
        key = new_key(key_id)
        stored = ApiKey(
            key_id=key_id,
            name=name,
            tenant=tenant,
            role=role,
            permissions=tuple(sorted(granted)),
            created_at=self._clock.now(),
            created_by=minter.who,
            expires_at=expires_at,
            digests=((digest_of(key, self._pepper), None),),
        )
        await self._write(stored, based_on=None)
        self._any_at = (self._clock.monotonic(), True)
        return Minted(key=key, stored=stored)

    async def list(self, asker: Identity, *, tenant: str | None = None, limit: int = 100) -> list[ApiKey]:
        """Newest first, those of the asker's tenant, or of all tenants for who may manage these."""
        if Permission.TENANTS_MANAGE not in asker.permissions:
            if tenant not in {None, asker.tenant}:
                return []
            tenant = asker.tenant
        store = await self._open_store()
        found = await store.list(*SPACE, owner=tenant, limit=limit)
        return [_decode(key, head) for key, head in found]

    async def revoke(self, changer: Identity, key_id: str) -> ApiKey:
        """For good. Revoking twice is no error."""
        stored, head = await self._changeable(changer, key_id)
        if stored.revoked_at is None:
            stored = replace(stored, revoked_at=self._clock.now(), digests=())
            await self._write(stored, based_on=head)
        return stored

    async def rotate(self, changer: Identity, key_id: str, *, overlap_s: float = 0.0) -> Minted:
        """A new secret for the same key; the former one works for `overlap_s` more seconds."""
        stored, head = await self._changeable(changer, key_id)
        if stored.revoked_at is not None:
            raise Conflict(f"key {key_id} was revoked; make a new one")
        key, now = new_key(key_id), self._clock.now()
        former = tuple((digest, now + overlap_s) for digest, _ in stored.digests[:1] if overlap_s > 0)
        stored = replace(stored, digests=((digest_of(key, self._pepper), None), *former))
        await self._write(stored, based_on=head)
        return Minted(key=key, stored=stored)

    async def _changeable(self, changer: Identity, key_id: str) -> tuple[ApiKey, Head]:
        stored, head = await self._find(key_id)
        # Another tenant's key looks like one that does not exist.
        foreign = stored is not None and stored.tenant != changer.tenant
        if stored is None or head is None or (foreign and Permission.TENANTS_MANAGE not in changer.permissions):
            raise NotFound(f"there is no key {key_id}")
        reason = permitted(changer, tenant=stored.tenant, permissions=stored.permissions, expires_at=stored.expires_at)
        if reason and changer.key_id != key_id:
            raise Forbidden(f"a key cannot change one that exceeds it: {reason}")
        return stored, head

    async def _find(self, key_id: str) -> tuple[ApiKey | None, Head | None]:
        key = Key(*SPACE, key_id)
        log = await (await self._open_store()).tail(key, 0)
        return (None, None) if log is None else (_decode(key, log.head), log.head)

    async def _write(self, stored: ApiKey, *, based_on: Head | None) -> None:
        data = history.pack(asdict(stored))
        version = based_on.version + 1 if based_on else 0
        write = Write(
            head=Head(version=version, data=data, owner=stored.tenant),
            records=(data,),
            based_on=based_on.seq if based_on else 0,
        )
        await (await self._open_store()).append(Key(*SPACE, stored.key_id), write)
        self._known = {digest: item for digest, item in self._known.items() if item.stored.key_id != stored.key_id}

    def _is_valid(self, stored: ApiKey, digest: str) -> bool:
        now = self._clock.now()
        if stored.revoked_at is not None or (stored.expires_at is not None and stored.expires_at <= now):
            return False
        matches = [until for known, until in stored.digests if hmac.compare_digest(known, digest)]
        return any(until is None or until > now for until in matches)


def _decode(key: Key, head: Head) -> ApiKey:
    try:
        body = history.unpack(head.data)
    except ValueError as error:
        raise CorruptState(f"key {key.id} cannot be read ({error}); restore the store from a backup") from error
    body["role"] = Role(body["role"])
    body["permissions"] = tuple(Permission(name) for name in body["permissions"])
    body["digests"] = tuple((digest, until) for digest, until in body["digests"])
    return ApiKey(**body)
