"""The audit trail: order, queries, and every kind of tampering."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from chatgrpo import audit
from chatgrpo.audit import Anchor, AuditTrail, verify
from chatgrpo.errors import Unavailable
from chatgrpo.state import history
from chatgrpo.state.memory import MemoryStore
from chatgrpo.state.sqlite import SqliteStore
from chatgrpo.state.store import Key, Store, Write
from tests.fakes import FakeClock


async def fill(trail: AuditTrail, clock: FakeClock, count: int = 6) -> None:
    for number in range(count):
        clock.advance(10)
        await trail.record(
            who=f"user{number % 2}", what=("chat.ask", "job.submit")[number % 2], tenant="t", target=f"x{number}"
        )


async def test_query_by_who_what_when(store: Store) -> None:
    clock = FakeClock(0)
    trail = AuditTrail(store, clock=clock)
    await fill(trail, clock)
    assert [e.target for e in await trail.query()] == ["x0", "x1", "x2", "x3", "x4", "x5"]
    assert [e.target for e in await trail.query(who="user1")] == ["x1", "x3", "x5"]
    assert [e.target for e in await trail.query(what="chat.ask", limit=2)] == ["x0", "x2"]
    assert [e.target for e in await trail.query(what="job.", since=40, until=60)] == ["x3"]
    assert [e.target for e in await trail.query(since=31)] == ["x3", "x4", "x5"]
    assert await trail.query(tenant="other") == []


async def test_many_writers_make_one_chain(store: Store) -> None:
    trails = [AuditTrail(store) for _ in range(3)]
    await asyncio.gather(
        *(t.record(who=f"w{i}", what="x", tenant="t", target=str(n)) for i, t in enumerate(trails) for n in range(30))
    )
    report = await trails[0].verify()
    assert (report.count, report.problem) == (90, None)
    for index in range(3):
        mine = await trails[0].query(who=f"w{index}", limit=99)
        assert [entry.target for entry in mine] == [str(n) for n in range(30)]


async def test_time_never_goes_back_along_the_chain(store: Store) -> None:
    clock = FakeClock(100)
    trail = AuditTrail(store, clock=clock)
    await trail.record(who="a", what="x", tenant="t", target="1")
    clock.time = 50
    await trail.record(who="a", what="x", tenant="t", target="2")
    assert [entry.at for entry in await trail.query()] == [100, 100]


@pytest.mark.parametrize(
    ("tamper", "problem"),
    [
        ("change", "entry 2 was changed"),
        ("rehash", "entry 3 does not follow"),
        ("remove", "entry 2 does not follow"),
        ("swap", "entry 1 does not follow"),
        ("cut", "2 entries are missing at the end"),
        ("garble", "cannot be read"),
    ],
)
async def test_tampering_is_found(tmp_path: Path, tamper: str, problem: str) -> None:
    path = tmp_path / "state.db"
    store = SqliteStore(path)
    clock = FakeClock(0)
    await fill(AuditTrail(store, clock=clock), clock)
    await store.close()
    assert (await verify(path)).is_intact

    database = sqlite3.connect(path)

    def body(version: int) -> dict[str, object]:
        (data,) = database.execute("SELECT data FROM records WHERE version = ?", (version,)).fetchone()
        return history.unpack(data)

    def put(version: int, data: bytes) -> None:
        database.execute("UPDATE records SET data = ? WHERE version = ?", (data, version))

    if tamper in {"change", "rehash"}:
        forged = body(2) | {"who": "nobody"}
        if tamper == "rehash":
            fields = {name: value for name, value in forged.items() if name != "hash"}
            forged["hash"] = audit.hash_of(audit.AuditEntry(**fields), None)  # type: ignore[arg-type]
        put(2, history.pack(forged))
    elif tamper == "remove":
        database.execute("DELETE FROM records WHERE version = 2")
    elif tamper == "swap":
        one, two = body(1), body(2)
        put(1, history.pack(two))
        put(2, history.pack(one))
    elif tamper == "cut":
        database.execute("DELETE FROM records WHERE version >= 4")
    else:
        put(2, b"garbage")
    database.commit()
    database.close()
    report = await verify(path)
    assert report.problem is not None
    assert problem in report.problem


async def test_an_anchor_finds_a_chain_cut_or_made_anew(store: Store) -> None:
    clock = FakeClock(0)
    trail = AuditTrail(store, clock=clock)
    await fill(trail, clock)
    anchor = await trail.anchor()
    assert anchor.count == 6
    assert (await trail.verify(anchor)).is_intact
    assert (await trail.verify(Anchor(count=8, hash="x"))).problem == "2 entries are missing at the end"
    await store.delete(audit.TRAIL)
    clock.advance(1)
    await fill(trail, clock)
    assert (await trail.verify()).is_intact
    assert "is not the one that was anchored" in str((await trail.verify(anchor)).problem)


async def test_a_secret_keeps_forgers_from_hashing(store: Store) -> None:
    clock = FakeClock(0)
    await fill(AuditTrail(store, clock=clock, secret=b"pepper"), clock)
    assert (await verify(store, secret=b"pepper")).is_intact
    assert not (await verify(store)).is_intact
    assert not (await verify(store, secret=b"salt")).is_intact


async def test_an_empty_trail_is_intact(store: Store) -> None:
    report = await verify(store)
    assert (report.count, report.is_intact) == (0, True)


class FailingStore(MemoryStore):
    """Takes no appends while `is_down`."""

    is_down = False

    async def append(self, key: Key, write: Write, *, durable: bool = True) -> int:
        if self.is_down:
            raise Unavailable("disk full")
        return await super().append(key, write, durable=durable)


def entry(target: str) -> dict[str, str]:
    return {"who": "a", "what": "x", "tenant": "t", "target": target}


async def targets(trail: AuditTrail) -> list[str]:
    return [found.target for found in await trail.query()]


async def test_noted_entries_are_written_together_without_being_waited_for() -> None:
    store = MemoryStore()
    trail = AuditTrail(store)
    for number in range(5):
        await trail.note(**entry(str(number)))
    assert await targets(trail) == []
    await trail.flush()
    assert await targets(trail) == ["0", "1", "2", "3", "4"]
    log = await store.tail(audit.TRAIL, 0)
    assert log is not None
    assert log.head.seq == 1, "one write"
    assert (await trail.verify()).is_intact


async def test_a_noted_entry_is_written_soon_without_anybody_asking() -> None:
    class TellingStore(MemoryStore):
        async def append(self, key: Key, write: Write, *, durable: bool = True) -> int:
            written.set()
            return await super().append(key, write, durable=durable)

    written = asyncio.Event()
    await AuditTrail(TellingStore()).note(**entry("0"))
    await asyncio.wait_for(written.wait(), 5)


async def test_a_strict_entry_takes_the_noted_ones_before_it_along() -> None:
    trail = AuditTrail(MemoryStore())
    await trail.note(**entry("chat"))
    await trail.record(**entry("key"))
    assert await targets(trail) == ["chat", "key"]


async def test_what_was_noted_survives_an_outage_and_acts_wait_meanwhile() -> None:
    store = FailingStore()
    trail = AuditTrail(store)
    await trail.note(**entry("before"))
    store.is_down = True
    with pytest.raises(Unavailable, match="1 audit entries"):
        await trail.flush()
    with pytest.raises(Unavailable, match="disk full"):
        await trail.note(**entry("during"))
    store.is_down = False
    await trail.note(**entry("after"))
    assert await targets(trail) == ["before", "after"], "the one that was refused did not happen"
    await trail.note(**entry("later"))
    await trail.flush()
    assert (await trail.verify()).count == 3


async def test_no_more_is_noted_than_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_NOTED", 2)
    trail = AuditTrail(MemoryStore())
    for number in range(3):
        await trail.note(**entry(str(number)))
    assert await targets(trail) == ["0", "1", "2"]


async def test_two_processes_note_into_one_chain(store: Store) -> None:
    trails = [AuditTrail(store) for _ in range(2)]
    for number in range(20):
        await trails[number % 2].note(**entry(str(number)))
        if number % 5 == 4:
            await asyncio.gather(*(trail.flush() for trail in trails))
    report = await trails[0].verify()
    assert (report.count, report.problem) == (20, None)
