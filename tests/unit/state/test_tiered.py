"""The tiers: what is read once, what is never kept, what waits to be written."""

from __future__ import annotations

import asyncio

import pytest

from chatgrpo.errors import Unavailable
from chatgrpo.messages import user
from chatgrpo.state.consistency import Consistency, SessionToken, may_serve
from chatgrpo.state.conversation import Appended
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.copies import MAX_COPY_BYTES, copy_of
from chatgrpo.state.memory import MemoryStore
from chatgrpo.state.store import Head, Key, Log, Record, Write
from chatgrpo.state.tiered import TieredStore

TENANT = "t"
KEY = Key(TENANT, "conversation", "x")


class Gated(MemoryStore):
    """Counts reads, holds them at a gate, and takes no writes while it is `down`."""

    def __init__(self) -> None:
        super().__init__()
        self.num_reads = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_down = False

    async def tail(self, key: Key, count: int, *, unless: int = 0) -> Log | None:
        self.num_reads += 1
        log = await super().tail(key, count, unless=unless)
        await self.gate.wait()
        return log

    async def append(self, key: Key, write: Write, *, durable: bool = True) -> int:
        if self.is_down:
            raise Unavailable("down")
        return await super().append(key, write, durable=durable)


async def opened(store: MemoryStore, *, max_pending: int = 100) -> Conversations:
    tiers = TieredStore(store, max_pending=max_pending)
    await tiers.start()
    return Conversations(tiers)


async def filled(store: Gated) -> None:
    writer = await opened(store)
    await writer.create("x", tenant=TENANT)
    await writer.append("x", [user("1")], tenant=TENANT)
    store.num_reads = 0


async def said(conversations: Conversations, level: Consistency) -> list[str]:
    window = await conversations.read_recent("x", tenant=TENANT, level=level)
    return [message.content for message in window.messages]


async def test_a_hundred_misses_at_once_are_one_read() -> None:
    store = Gated()
    await filled(store)
    reader = await opened(store)
    store.gate.clear()
    reads = [asyncio.create_task(said(reader, Consistency.SESSION)) for _ in range(100)]
    await asyncio.sleep(0)
    store.gate.set()
    assert await asyncio.gather(*reads) == [["1"]] * 100
    assert store.num_reads == 1
    assert await said(reader, Consistency.STRONG) == ["1"]
    assert store.num_reads == 1


async def test_a_copy_outdated_on_its_way_is_not_kept() -> None:
    store = Gated()
    await filled(store)
    writer, reader = await opened(store), await opened(store)
    store.gate.clear()
    read = asyncio.create_task(said(reader, Consistency.SESSION))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    log = store._logs[KEY]
    await MemoryStore.append(
        store, KEY, Write(head=Head(version=1, data=log.head.data), records=(), based_on=log.head.seq)
    )
    store.gate.set()
    assert await read == ["1"]
    assert len(reader.tiers._copies) == 0
    await writer.append("x", [user("2")], tenant=TENANT)
    assert await said(reader, Consistency.SESSION) == ["1", "2"]


async def test_eventual_appends_are_visible_at_once_and_written_behind() -> None:
    store = Gated()
    await filled(store)
    writer, other = await opened(store), await opened(store)
    store.is_down = True
    done = await writer.append("x", [user("2")], tenant=TENANT, level=Consistency.EVENTUAL)
    assert done.version == 2
    assert await said(writer, Consistency.EVENTUAL) == ["1", "2"]
    assert await said(other, Consistency.STRONG) == ["1"]
    with pytest.raises(Unavailable):
        await said(writer, Consistency.SESSION)
    store.is_down = False
    assert await said(writer, Consistency.SESSION) == ["1", "2"]
    assert await said(other, Consistency.STRONG) == ["1", "2"]


async def test_write_behind_is_bounded_and_drained_on_close() -> None:
    store = Gated()
    await filled(store)
    writer = await opened(store, max_pending=20)
    store.is_down = True
    for number in range(20):
        await writer.append("x", [user(f"e{number}")], tenant=TENANT, level=Consistency.EVENTUAL)
    with pytest.raises(Unavailable):
        await writer.append("x", [user("one too many")], tenant=TENANT, level=Consistency.EVENTUAL)
    store.is_down = False
    await writer.close()
    reader = await opened(store)
    assert await said(reader, Consistency.STRONG) == ["1", *(f"e{number}" for number in range(20))]


async def test_written_behind_after_others_is_rebased_not_lost() -> None:
    store = Gated()
    await filled(store)
    writer, other = await opened(store), await opened(store)
    store.is_down = True
    await writer.append("x", [user("mine")], tenant=TENANT, level=Consistency.EVENTUAL)
    store.is_down = False
    await other.append("x", [user("theirs")], tenant=TENANT, level=Consistency.STRONG)
    await writer.tiers.flush()
    assert await said(other, Consistency.STRONG) == ["1", "theirs", "mine"]


async def test_writes_for_a_deleted_conversation_go_with_it() -> None:
    store = Gated()
    await filled(store)
    writer, other = await opened(store), await opened(store)
    store.is_down = True
    await writer.append("x", [user("2")], tenant=TENANT, level=Consistency.EVENTUAL)
    store.is_down = False
    await other.delete("x", tenant=TENANT)
    await writer.tiers.flush()
    assert store._logs == {}


def test_a_copy_of_giant_records_is_cut_to_the_newest() -> None:
    big = bytes(MAX_COPY_BYTES // 2)
    records = tuple(Record(version, big) for version in range(5))
    copy = copy_of(KEY, Head(version=4, data=b""), records)
    assert ([record.version for record in copy.records], copy.is_cut) == ([3, 4], True)
    assert copy_of(KEY, Head(version=0, data=b""), records[:1]).is_cut is False


@pytest.mark.parametrize(
    ("level", "applied", "is_current", "expected"),
    [
        (Consistency.EVENTUAL, 0, False, True),
        (Consistency.SESSION, 0, False, False),
        (Consistency.SESSION, 7, False, True),
        (Consistency.CAUSAL, 8, False, False),
        (Consistency.CAUSAL, 9, False, True),
        (Consistency.STRONG, 99, False, False),
        (Consistency.STRONG, 0, True, True),
    ],
)
def test_may_serve(level: Consistency, applied: int, is_current: bool, expected: bool) -> None:
    """A copy of commit 5; the client has seen commit 7 of this conversation and commit 9 of another."""
    token = SessionToken(seq=9, seen={"x": 7, "y": 9})
    copy = Head(version=1, data=b"", seq=5)
    answer = may_serve(copy, "x", level=level, token=token, applied=applied, is_current=is_current)
    assert answer is expected


def test_tokens_travel_as_text_and_stay_small() -> None:
    token = SessionToken()
    for number in range(100):
        token = token.advance(Appended(conversation_id=f"c{number}", version=1, seq=number + 1))
    assert SessionToken.parse(token.text) == token
    assert len(token.seen) == 32
    assert (token.needs("c99"), token.needs("c0"), token.seq) == (100, 68, 100)
    assert len(token.text) < 4096
    with pytest.raises(Exception, match="not a session token"):
        SessionToken.parse("garbage")
