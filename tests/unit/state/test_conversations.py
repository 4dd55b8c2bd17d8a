"""Conversations over every store: what the methods promise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from chatgrpo.errors import Conflict, InvalidRequest, NotFound, TooLarge
from chatgrpo.messages import assistant, user
from chatgrpo.state.consistency import Consistency, SessionToken
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.limits import Limits
from chatgrpo.state.store import Head, Key, Store, Write
from chatgrpo.state.tiered import TieredStore
from tests.fakes import FakeClock

TENANT = "t"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def conversations(store: Store, clock: FakeClock) -> AsyncIterator[Conversations]:
    tiers = TieredStore(store)
    await tiers.start()
    yield Conversations(tiers, clock=clock, limits=Limits(max_message_bytes=2000, max_context_bytes=200))
    await tiers.close()


async def texts(conversations: Conversations, id_: str, **bounds: int) -> list[str]:
    window = await conversations.read_recent(id_, tenant=TENANT, **bounds)  # type: ignore[arg-type]
    return [message.content for message in window.messages]


async def test_create_append_read(conversations: Conversations, clock: FakeClock) -> None:
    made = await conversations.create(None, tenant=TENANT, user_id="u", context={"lang": "de"})
    assert len(made.id) == 26
    assert (made.version, made.num_messages, made.context) == (0, 0, {"lang": "de"})
    clock.advance(5)
    done = await conversations.append(made.id, [user("hi"), assistant("hello")], tenant=TENANT, expected_version=0)
    assert done.version == 2
    window = await conversations.read_recent(made.id, tenant=TENANT)
    assert [(t.version, t.message) for t in window.turns] == [(1, user("hi")), (2, assistant("hello"))]
    assert (window.version, window.is_whole, window.turns[0].created_at) == (2, True, clock.now())
    found = await conversations.get(made.id, tenant=TENANT)
    assert (found.version, found.num_messages, found.updated_at - found.created_at) == (2, 2, 5.0)


async def test_existing_id_conflicts(conversations: Conversations) -> None:
    await conversations.create("a", tenant=TENANT)
    with pytest.raises(Conflict, match="exists already"):
        await conversations.create("a", tenant=TENANT)
    await conversations.create("a", tenant="other")


async def test_unknown_and_foreign_look_the_same(conversations: Conversations) -> None:
    await conversations.create("Q1", tenant="other")
    errors = []
    for id_ in ("Q1", "Q2"):
        for act in (
            conversations.get(id_, tenant=TENANT),
            conversations.append(id_, [user("x")], tenant=TENANT),
            conversations.read_recent(id_, tenant=TENANT),
            conversations.delete(id_, tenant=TENANT),
            conversations.fork(id_, tenant=TENANT),
            conversations.rollback(id_, 0, tenant=TENANT),
            conversations.feedback(id_, 1, tenant=TENANT, score=1.0),
        ):
            with pytest.raises(NotFound) as caught:
                await act
            errors.append(caught.value.message.replace(id_, "?"))
    assert len(set(errors)) == 1


async def test_stale_writer_gets_the_current_version(conversations: Conversations) -> None:
    await conversations.create("a", tenant=TENANT)
    await conversations.append("a", [user("1")], tenant=TENANT, expected_version=0)
    with pytest.raises(Conflict) as caught:
        await conversations.append("a", [user("x")], tenant=TENANT, expected_version=0)
    assert caught.value.current_version == 1
    assert await texts(conversations, "a") == ["1"]


async def test_unconditional_writers_all_get_in(conversations: Conversations) -> None:
    await conversations.create("a", tenant=TENANT)
    done = await asyncio.gather(*(conversations.append("a", [user(str(i))], tenant=TENANT) for i in range(30)))
    assert sorted(d.version for d in done) == list(range(1, 31))
    got = await texts(conversations, "a")
    assert sorted(got, key=int) == [str(i) for i in range(30)]
    assert [got[d.version - 1] for d in done] == [str(i) for i in range(30)]


async def test_a_retried_append_adds_nothing_twice(conversations: Conversations) -> None:
    await conversations.create("a", tenant=TENANT)
    first = await conversations.append("a", [user("1")], tenant=TENANT, append_id="x", expected_version=0)
    await conversations.append("a", [user("2")], tenant=TENANT)
    again = await conversations.append("a", [user("1")], tenant=TENANT, append_id="x", expected_version=0)
    assert (first.version, again.version) == (1, 1)
    assert await texts(conversations, "a") == ["1", "2"]


async def test_windows_by_messages_and_tokens(conversations: Conversations) -> None:
    await conversations.create("a", tenant=TENANT)
    messages = [user(f"{i:03}") for i in range(100)]
    await conversations.append("a", messages, tenant=TENANT, num_tokens=[10] * 100)
    assert await texts(conversations, "a", max_messages=3) == ["097", "098", "099"]
    assert await texts(conversations, "a", max_tokens=25) == ["098", "099"]
    assert await texts(conversations, "a", max_tokens=30) == ["097", "098", "099"]
    assert await texts(conversations, "a", max_messages=1, max_tokens=1000) == ["099"]
    assert await texts(conversations, "a", max_tokens=9) == []
    assert len(await texts(conversations, "a")) == 50
    assert len(await texts(conversations, "a", max_messages=500)) == 100


async def test_reads_beyond_the_cached_window(conversations: Conversations) -> None:
    await conversations.create("a", tenant=TENANT)
    for start in range(0, 1000, 200):
        await conversations.append("a", [user(str(i)) for i in range(start, start + 200)], tenant=TENANT)
    assert await texts(conversations, "a", max_messages=700) == [str(i) for i in range(300, 1000)]
    whole = await conversations.read_recent("a", tenant=TENANT, max_messages=1000)
    assert whole.is_whole
    page = await conversations.read("a", tenant=TENANT, after=400, limit=3)
    assert [turn.message.content for turn in page] == ["400", "401", "402"]


async def test_rollback_is_a_new_version_and_forward_is_possible(conversations: Conversations) -> None:
    await conversations.create("a", tenant=TENANT, context={"n": 1})
    await conversations.append("a", [user("1"), user("2"), user("3")], tenant=TENANT)
    await conversations.set_context("a", {"n": 2}, tenant=TENANT)
    back = await conversations.rollback("a", 1, tenant=TENANT, expected_version=4)
    assert back.version == 5
    await conversations.append("a", [user("4")], tenant=TENANT, expected_version=5)
    assert await texts(conversations, "a") == ["1", "4"]
    now = await conversations.get("a", tenant=TENANT)
    assert (now.version, now.num_messages, now.context) == (6, 2, {"n": 1})
    await conversations.rollback("a", 4, tenant=TENANT)
    assert await texts(conversations, "a") == ["1", "2", "3"]
    assert (await conversations.get("a", tenant=TENANT)).context == {"n": 2}
    await conversations.rollback("a", 6, tenant=TENANT)
    assert await texts(conversations, "a") == ["1", "4"]
    await conversations.rollback("a", 0, tenant=TENANT)
    assert await texts(conversations, "a") == []
    past = await conversations.read("a", tenant=TENANT, at_version=6)
    assert [turn.message.content for turn in past] == ["1", "4"]
    with pytest.raises(InvalidRequest, match="between 0 and"):
        await conversations.rollback("a", 99, tenant=TENANT)
    with pytest.raises(Conflict):
        await conversations.rollback("a", 1, tenant=TENANT, expected_version=1)


async def test_fork_copies_what_was_visible(conversations: Conversations) -> None:
    await conversations.create("a", tenant=TENANT, user_id="u", context={"n": 1})
    await conversations.append("a", [user("1"), user("2")], tenant=TENANT)
    fork = await conversations.fork("a", tenant=TENANT, at_version=1, new_id="b")
    assert (fork.forked_from, fork.user_id, fork.context, fork.num_messages) == ("a@1", "u", {"n": 1}, 1)
    await conversations.append("b", [user("other")], tenant=TENANT)
    await conversations.delete("a", tenant=TENANT)
    assert await texts(conversations, "b") == ["1", "other"]


async def test_context_changes_with_an_append(conversations: Conversations) -> None:
    await conversations.create("a", tenant=TENANT, context={"x": 1})
    done = await conversations.append("a", [user("1")], tenant=TENANT, context={"y": 2})
    assert done.version == 2
    same = await conversations.append("a", [user("2")], tenant=TENANT, context={"y": 2})
    assert same.version == 3
    assert (await conversations.get("a", tenant=TENANT)).context == {"x": 1, "y": 2}


async def test_idle_conversations_expire_and_are_swept(conversations: Conversations, clock: FakeClock) -> None:
    await conversations.create("a", tenant=TENANT, ttl_s=10)
    clock.advance(8)
    await conversations.append("a", [user("1")], tenant=TENANT)
    clock.advance(8)
    assert await conversations.sweep() == 0
    assert await texts(conversations, "a") == ["1"]
    clock.advance(3)
    with pytest.raises(NotFound):
        await conversations.read_recent("a", tenant=TENANT)
    assert (await conversations.list(tenant=TENANT)).conversations == ()
    assert await conversations.sweep() == 1
    again = await conversations.create("a", tenant=TENANT)
    assert again.num_messages == 0


async def test_the_sweep_takes_whatever_else_has_expired(conversations: Conversations, clock: FakeClock) -> None:
    store, other = conversations.tiers.store, Key(TENANT, "kept_answer", "k")
    head = Head(version=0, data=b"{}", expires_at=clock.now() + 5)
    await store.append(other, Write(head=head, records=(b"",), based_on=0))
    assert await conversations.sweep() == 0
    clock.advance(5)
    assert await conversations.sweep() == 1
    assert await store.tail(other, 0) is None


async def test_an_expired_id_may_be_used_again_before_the_sweep(conversations: Conversations, clock: FakeClock) -> None:
    await conversations.create("a", tenant=TENANT, ttl_s=10)
    await conversations.append("a", [user("old")], tenant=TENANT)
    clock.advance(11)
    await conversations.create("a", tenant=TENANT)
    assert await texts(conversations, "a") == []


async def test_list_pages(conversations: Conversations) -> None:
    for name in "abcde":
        await conversations.create(name, tenant=TENANT, user_id="u" if name != "c" else "v")
    page = await conversations.list(tenant=TENANT, user_id="u", limit=3)
    assert [c.id for c in page.conversations] == ["e", "d", "b"]
    rest = await conversations.list(tenant=TENANT, user_id="u", limit=3, cursor=page.cursor)
    assert ([c.id for c in rest.conversations], rest.cursor) == (["a"], None)


async def test_limits_are_named(conversations: Conversations) -> None:
    await conversations.create("a", tenant=TENANT)
    with pytest.raises(TooLarge, match="max_message_bytes is 2000"):
        await conversations.append("a", [user("x" * 3000)], tenant=TENANT)
    with pytest.raises(TooLarge, match="max_context_bytes is 200"):
        await conversations.append("a", [user("x")], tenant=TENANT, context={"k": "x" * 300})
    with pytest.raises(TooLarge, match="max_messages_per_append"):
        await conversations.append("a", [user("x")] * 257, tenant=TENANT)
    with pytest.raises(InvalidRequest, match="an id is"):
        await conversations.create("a/b", tenant=TENANT)
    with pytest.raises(InvalidRequest, match="at least one message"):
        await conversations.append("a", [], tenant=TENANT)


async def test_delete_forgets_feedback_too(conversations: Conversations) -> None:
    await conversations.create("a", tenant=TENANT)
    await conversations.append("a", [user("q"), assistant("r")], tenant=TENANT)
    await conversations.feedback("a", 2, tenant=TENANT, score=1.0)
    await conversations.delete("a", tenant=TENANT)
    with pytest.raises(NotFound):
        await conversations.get("a", tenant=TENANT, level=Consistency.EVENTUAL)
    await conversations.create("a", tenant=TENANT)
    await conversations.append("a", [user("q"), assistant("r")], tenant=TENANT)
    assert [line async for line in conversations.export(tenant=TENANT)] == []


async def test_feedback_becomes_training_lines(conversations: Conversations) -> None:
    await conversations.create("a", tenant=TENANT, user_id="u")
    await conversations.append(
        "a", [user("2+2?"), assistant("5"), user("3+3?"), assistant("6"), user("?"), assistant("bad")], tenant=TENANT
    )
    await conversations.feedback("a", 2, tenant=TENANT, score=1.0)
    await conversations.feedback("a", 2, tenant=TENANT, score=-1.0, corrected="4")
    await conversations.feedback("a", 4, tenant=TENANT, score=1.0, label="good")
    await conversations.feedback("a", 6, tenant=TENANT, score=-0.5)
    lines = [line async for line in conversations.export(tenant=TENANT, user_id="u")]
    assert lines[0] == {
        "messages": [{"role": "user", "content": "2+2?"}],
        "answer": "4",
        "response": "5",
        "score": -1.0,
        "label": None,
        "conversation_id": "a",
        "version": 2,
    }
    assert [line["answer"] for line in lines] == ["4", "6", None]
    assert len(lines[1]["messages"]) == 3
    with pytest.raises(InvalidRequest, match="not a visible turn of the assistant"):
        await conversations.feedback("a", 1, tenant=TENANT, score=1.0)
    with pytest.raises(InvalidRequest, match="score"):
        await conversations.feedback("a", 2, tenant=TENANT, score=2.0)


async def test_a_store_that_went_back_in_time_is_noticed(conversations: Conversations) -> None:
    made = await conversations.create("a", tenant=TENANT)
    seen = SessionToken().advance(made)
    lost = SessionToken(seq=99, seen={"a": 99})
    assert (await conversations.get("a", tenant=TENANT, session=seen)).version == 0
    with pytest.raises(Conflict, match="lost writes that this session has seen"):
        await conversations.get("a", tenant=TENANT, session=lost)


async def test_prefetch_loads_the_users_newest(conversations: Conversations) -> None:
    for name in "abc":
        await conversations.create(name, tenant=TENANT, user_id="u")
    assert await conversations.prefetch(tenant=TENANT, user_id="u", limit=2) == 2
