"""What every store promises, run on every backend."""

from __future__ import annotations

import asyncio

import pytest

from chatgrpo.errors import Conflict
from chatgrpo.state.store import Change, Head, Key, Store, Write

KEY = Key("t", "conversation", "a")


def write(version: int, *records: bytes, based_on: int = 0, owner: str = "u", expires_at: float | None = None) -> Write:
    head = Head(version=version, data=b"head%d" % version, owner=owner, expires_at=expires_at)
    return Write(head=head, records=records, based_on=based_on)


async def test_absent_log_reads_as_nothing(store: Store) -> None:
    assert await store.tail(KEY, 5) is None
    assert await store.read(KEY, 0, 5) == ()
    assert await store.delete(KEY) is False
    assert await store.list("t", "conversation") == []


async def test_append_then_tail_gives_head_and_last_records(store: Store) -> None:
    seq = await store.append(KEY, write(2, b"a", b"b", b"c", expires_at=9.5))
    log = await store.tail(KEY, 2)
    assert log is not None
    assert log.head == Head(version=2, data=b"head2", owner="u", expires_at=9.5, seq=seq)
    assert [(r.version, r.data) for r in log.records] == [(1, b"b"), (2, b"c")]
    again = await store.append(KEY, write(3, b"d", based_on=seq))
    assert again > seq
    assert [r.data for r in await store.read(KEY, 1, 3)] == [b"b", b"c"]
    assert [r.data for r in await store.read(KEY, 3, 99)] == [b"d"]


async def test_tail_leaves_out_records_that_the_caller_has(store: Store) -> None:
    seq = await store.append(KEY, write(0, b"a"))
    log = await store.tail(KEY, 5, unless=seq)
    assert log is not None
    assert log.head.version == 0
    assert log.records == ()


async def test_stale_writer_is_told_the_current_version(store: Store) -> None:
    seq = await store.append(KEY, write(0, b"a"))
    await store.append(KEY, write(1, b"b", based_on=seq))
    with pytest.raises(Conflict) as caught:
        await store.append(KEY, write(1, b"x", based_on=seq))
    assert caught.value.current_version == 1
    with pytest.raises(Conflict):
        await store.append(KEY, write(0, b"x"))
    assert [r.data for r in await store.read(KEY, 0, 9)] == [b"a", b"b"]


async def test_writing_to_a_deleted_log_says_absent(store: Store) -> None:
    seq = await store.append(KEY, write(0, b"a"))
    assert await store.delete(KEY) is True
    with pytest.raises(Conflict) as caught:
        await store.append(KEY, write(1, b"b", based_on=seq))
    assert caught.value.current_version == -1


async def test_a_log_created_again_has_a_newer_seq_and_no_old_records(store: Store) -> None:
    old = await store.append(KEY, write(1, b"a", b"b"))
    await store.delete(KEY)
    new = await store.append(KEY, write(0, b"z"))
    assert new > old
    assert [r.data for r in await store.read(KEY, 0, 9)] == [b"z"]


async def test_of_racing_writers_exactly_one_wins(store: Store) -> None:
    seq = await store.append(KEY, write(0, b"a"))
    outcomes = await asyncio.gather(
        *(store.append(KEY, write(1, b"%d" % i, based_on=seq)) for i in range(20)), return_exceptions=True
    )
    assert sum(isinstance(outcome, int) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 19
    assert len(await store.read(KEY, 0, 9)) == 2


async def test_commits_are_numbered_without_gaps(store: Store) -> None:
    seqs = await asyncio.gather(*(store.append(Key("t", "s", str(i)), write(0, b"x")) for i in range(10)))
    assert sorted(seqs) == list(range(min(seqs), min(seqs) + 10))


async def test_list_by_owner_descending_with_cursor(store: Store) -> None:
    for i in range(5):
        await store.append(Key("t", "conversation", f"c{i}"), write(0, b"x", owner="u" if i != 2 else "v"))
    await store.append(Key("other", "conversation", "c9"), write(0, b"x"))
    await store.append(Key("t", "feedback", "c9"), write(0, b"x"))
    first = await store.list("t", "conversation", owner="u", limit=2)
    assert [key.id for key, _ in first] == ["c4", "c3"]
    rest = await store.list("t", "conversation", owner="u", before="c3", limit=9)
    assert [key.id for key, _ in rest] == ["c1", "c0"]
    assert [key.id for key, _ in await store.list("t", "conversation")] == ["c4", "c3", "c2", "c1", "c0"]
    assert first[0][1].owner == "u"


async def test_expired_logs_oldest_first(store: Store) -> None:
    for name, expires_at in (("a", 30.0), ("b", 10.0), ("c", 20.0), ("d", None)):
        await store.append(Key("t", "s", name), write(0, b"x", expires_at=expires_at))
    assert [key.id for key in await store.expired(20.0, 10)] == ["b", "c"]
    assert [key.id for key in await store.expired(99.0, 1)] == ["b"]
    await store.delete(Key("t", "s", "b"))
    assert [key.id for key in await store.expired(99.0, 10)] == ["c", "a"]


async def test_an_expiry_may_be_taken_back(store: Store) -> None:
    seq = await store.append(KEY, write(0, b"x", expires_at=10.0))
    await store.append(KEY, write(1, b"x", based_on=seq))
    assert list(await store.expired(99.0, 10)) == []


async def test_cut_names_versions_of_one_scope(store: Store) -> None:
    await store.append(Key("t", "conversation", "a"), write(1, b"x", b"y", owner="u"))
    await store.append(Key("t", "conversation", "b"), write(0, b"x", owner="v"))
    await store.append(Key("o", "conversation", "c"), write(0, b"x", owner="u"))
    cut = await store.cut("t", "conversation")
    assert dict(cut.versions) == {"a": 1, "b": 0}
    assert cut.seq == 3
    assert dict((await store.cut("t", "conversation", owner="u")).versions) == {"a": 1}


async def test_watch_tells_changes_and_says_how_far(store: Store) -> None:
    news: asyncio.Queue[Change | None] = asyncio.Queue()
    watch = await store.watch(news.put_nowait)
    while not news.empty():
        news.get_nowait()

    async def told() -> Change | None:
        watch.refresh()
        return await asyncio.wait_for(news.get(), 10)

    seq = await store.append(KEY, write(0, b"x"))
    assert await told() == Change(KEY, seq)
    assert watch.applied >= seq
    await store.delete(KEY)
    assert await told() == Change(KEY, seq + 1)
    await watch.close()


async def test_binary_data_comes_back_as_it_was(store: Store) -> None:
    data = bytes(range(256)) * 10
    await store.append(KEY, Write(head=Head(version=0, data=data), records=(data,), based_on=0))
    log = await store.tail(KEY, 1)
    assert log is not None
    assert (log.head.data, log.records[0].data) == (data, data)
