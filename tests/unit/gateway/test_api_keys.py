"""Keys: their form, their life, and that no key exceeds the one that made it."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgrpo.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unauthenticated
from chatgrpo.gateway.api_keys import SPACE, Keyring
from chatgrpo.gateway.identity import LOCAL, Identity
from chatgrpo.gateway.key_format import digest_of, key_id_of, new_key, read_pepper
from chatgrpo.gateway.roles import PERMISSIONS, Permission, Role
from chatgrpo.state.memory import MemoryStore
from chatgrpo.state.store import Key
from tests.fakes import FakeClock

ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def keyring_over(store: MemoryStore, clock: FakeClock) -> Keyring:
    async def opened() -> MemoryStore:
        return store

    return Keyring(opened, pepper=b"pepper", clock=clock)


def test_a_key_has_256_bits_a_prefix_and_a_checksum() -> None:
    key = new_key(ID)
    assert (key.split("_")[0], key_id_of(key)) == ("cgk", ID)
    assert len(bytes.fromhex(key.split("_")[2][:64])) == 32
    assert new_key(ID) != key
    assert digest_of(key, b"one") != digest_of(key, b"two")


@given(st.integers(0, 102), st.sampled_from("0123456789abcdefGHZ_-"))
def test_one_wrong_character_is_noticed_without_a_store(at: int, letter: str) -> None:
    key = new_key(ID)
    changed = key[:at] + letter + key[at + 1 :]
    assert key_id_of(changed) == (ID if changed == key else None)


def test_the_pepper_is_made_once_and_private(tmp_path: Path) -> None:
    pepper = read_pepper(tmp_path / "home")
    assert len(pepper) == 64
    assert read_pepper(tmp_path / "home") == pepper
    assert stat.S_IMODE((tmp_path / "home/key_pepper").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["key_pepper"]


async def test_a_key_identifies_until_it_expires(keyring: Keyring, clock: FakeClock) -> None:
    assert not await keyring.has_keys()
    minted = await keyring.create(LOCAL, name="ci", role=Role.TRAINER, tenant="acme", expires_at=clock.now() + 60)
    assert await keyring.has_keys()
    identity = await keyring.identify(minted.key)
    assert (identity.tenant, identity.role, identity.who) == ("acme", Role.TRAINER, f"key:{minted.stored.key_id}")
    assert identity.permissions == PERMISSIONS[Role.TRAINER]
    clock.advance(60)
    with pytest.raises(Unauthenticated, match="expired or was revoked"):
        await keyring.identify(minted.key)


async def test_a_revoked_key_stops_in_another_process_within_a_second(
    keyring: Keyring, store: MemoryStore, clock: FakeClock
) -> None:
    minted = await keyring.create(LOCAL, name="a", role=Role.USER)
    elsewhere = keyring_over(store, clock)
    await elsewhere.identify(minted.key)
    revoked = await keyring.revoke(LOCAL, minted.stored.key_id)
    assert revoked.revoked_at == clock.now()
    with pytest.raises(Unauthenticated):
        await keyring.identify(minted.key)
    clock.advance(0.5)
    with pytest.raises(Unauthenticated):
        await elsewhere.identify(minted.key)
    assert await keyring_over(store, clock).has_keys(), "the door stays closed after the last key"
    assert await keyring.revoke(LOCAL, minted.stored.key_id) == revoked
    with pytest.raises(Conflict):
        await keyring.rotate(LOCAL, minted.stored.key_id)


async def test_rotation_overlaps_for_as_long_as_asked(keyring: Keyring, clock: FakeClock) -> None:
    first = await keyring.create(LOCAL, name="a", role=Role.USER)
    second = await keyring.rotate(LOCAL, first.stored.key_id, overlap_s=10)
    assert await keyring.identify(first.key) == await keyring.identify(second.key)
    clock.advance(10)
    with pytest.raises(Unauthenticated):
        await keyring.identify(first.key)
    third = await keyring.rotate(LOCAL, first.stored.key_id)
    with pytest.raises(Unauthenticated):
        await keyring.identify(second.key)
    assert (await keyring.identify(third.key)).key_id == first.stored.key_id


async def test_the_store_holds_no_key(keyring: Keyring, store: MemoryStore) -> None:
    minted = await keyring.create(LOCAL, name="a", role=Role.USER)
    log = await store.tail(Key(*SPACE, minted.stored.key_id), 10)
    assert log is not None
    stored = b"".join([log.head.data, *(record.data for record in log.records)]).decode()
    assert minted.key not in stored
    assert minted.key.split("_")[2][:64] not in stored
    assert digest_of(minted.key, b"pepper") in stored
    assert "digests" not in minted.stored.view()


async def test_keys_of_other_tenants_do_not_exist(keyring: Keyring) -> None:
    theirs = (await keyring.create(LOCAL, name="b", role=Role.USER, tenant="b")).stored
    mine = await keyring.create(LOCAL, name="a", role=Role.OPERATOR, tenant="a")
    operator = await keyring.identify(mine.key)
    assert [key.name for key in await keyring.list(operator)] == ["a"]
    assert await keyring.list(operator, tenant="b") == []
    assert [key.name for key in await keyring.list(LOCAL)] == ["a", "b"]
    for act in (keyring.revoke, keyring.rotate):
        with pytest.raises(NotFound):
            await act(operator, theirs.key_id)
        with pytest.raises(NotFound):
            await act(operator, ID)


async def test_what_a_role_does_not_have_cannot_be_given(keyring: Keyring, clock: FakeClock) -> None:
    with pytest.raises(InvalidRequest, match="role viewer does not have jobs:write"):
        await keyring.create(LOCAL, name="a", role=Role.VIEWER, permissions=[Permission.JOBS_WRITE])
    with pytest.raises(InvalidRequest, match="past"):
        await keyring.create(LOCAL, name="a", role=Role.VIEWER, expires_at=clock.now())


Grants = st.sampled_from(Role).flatmap(
    lambda role: st.tuples(
        st.just(role),
        st.sets(st.sampled_from(sorted(PERMISSIONS[role]))),
        st.sampled_from(["a", "b"]),
        st.none() | st.integers(1, 100),
    )
)


@given(st.lists(Grants, min_size=1, max_size=5))
def test_a_chain_of_keys_never_gains(grants: list[tuple[Role, set[Permission], str, int | None]]) -> None:
    """Whatever is asked for, each key made is within the one that made it."""

    async def mint() -> None:
        clock = FakeClock()
        keyring = keyring_over(MemoryStore(), clock)
        minter: Identity = LOCAL
        for role, permissions, tenant, life_s in grants:
            expires_at = None if life_s is None else clock.now() + life_s
            try:
                minted = await keyring.create(
                    minter, name="k", role=role, tenant=tenant, permissions=permissions, expires_at=expires_at
                )
            except Forbidden:
                continue
            made = await keyring.identify(minted.key)
            assert Permission.KEYS_MANAGE in minter.permissions
            assert made.permissions <= minter.permissions
            assert made.tenant == minter.tenant or Permission.TENANTS_MANAGE in minter.permissions
            assert minter.expires_at is None or (made.expires_at or 1e99) <= minter.expires_at
            minter = made

    asyncio.run(mint())


async def test_a_lesser_key_cannot_take_over_a_greater_one(keyring: Keyring) -> None:
    admin = (await keyring.create(LOCAL, name="root", role=Role.ADMIN, tenant="a")).stored
    operator = await keyring.identify((await keyring.create(LOCAL, name="o", role=Role.OPERATOR, tenant="a")).key)
    for act in (keyring.revoke, keyring.rotate):
        with pytest.raises(Forbidden, match="tenants:manage"):
            await act(operator, admin.key_id)
