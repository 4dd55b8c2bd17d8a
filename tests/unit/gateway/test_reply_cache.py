"""Greedy replies told again: by whom, for how long, and to nobody else."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ulid import ULID

from chatgrpo.api.cached_chat import CachedChat
from chatgrpo.errors import Unavailable
from chatgrpo.gateway.config import ReplyCacheConfig
from chatgrpo.gateway.kept import Kept, MemoryKept, RedisKept
from chatgrpo.gateway.kept_cache import KeptCache
from chatgrpo.gateway.reply_cache import Asker, ReplyCache, name_of
from chatgrpo.inference.deltas import ChatDelta
from chatgrpo.inference.engine import FinishReason, SamplingParams
from chatgrpo.messages import Message, user
from tests.fakes import FakeClock

GREEDY = SamplingParams(temperature=0)
HI = (user("hi"),)
ANN = Asker(tenant="ann", version="1")


class Author:
    """Writes a new text each time, in two pieces; `gate` holds back the second."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Message, ...]]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def stream(
        self, model: str, messages: Sequence[Message], params: SamplingParams
    ) -> AsyncGenerator[ChatDelta, None]:
        number = len(self.asked)
        self.asked.append((model, tuple(messages)))
        if self.error is not None:
            raise self.error
        yield piece(str(number), None)
        await self.gate.wait()
        yield piece("!", FinishReason.STOP)


def piece(text: str, reason: FinishReason | None) -> ChatDelta:
    return ChatDelta(text=text, num_tokens=1, finish_reason=reason, model_version="v", num_prompt_tokens=1)


class Desk:
    """A cached chat over an author, as one replica has it."""

    def __init__(
        self, author: Author, clock: FakeClock, *, ttl_s: float = 10, warm_up: int = 0, redis: RedisKept | None = None
    ) -> None:
        self.looks: Counter[str] = Counter()
        kept = KeptCache(clock=clock, max_bytes=2**20, shared=redis)
        config = ReplyCacheConfig(ttl_s=ttl_s, stale_s=20, warm_up=warm_up)
        self.cache = ReplyCache(config, kept, looked=lambda result: self.looks.update([result]))
        self.chat = CachedChat(author, self.cache)  # type: ignore[arg-type]

    async def ask(
        self, asker: Asker = ANN, *, model: str = "m", messages: Any = HI, params: SamplingParams = GREEDY
    ) -> str:
        kept = await self.chat.kept(model, messages, params, asker)
        if kept is not None:
            return "".join(delta.text for delta in kept)
        return "".join([delta.text async for delta in self.chat.stream(model, messages, params, asker)])

    async def refreshed(self) -> None:
        await asyncio.gather(*self.chat._refreshing.values())


@pytest.fixture
def author() -> Author:
    return Author()


@pytest.fixture
def desk(author: Author, clock: FakeClock) -> Desk:
    return Desk(author, clock)


async def test_told_again_then_stale_then_forgotten(desk: Desk, author: Author, clock: FakeClock) -> None:
    assert [await desk.ask(), await desk.ask()] == ["0!", "0!"]
    clock.advance(10)
    assert await desk.ask() == "0!", "stale, and written anew meanwhile"
    await desk.refreshed()
    assert (await desk.ask(), len(author.asked)) == ("1!", 2)
    clock.advance(30)
    assert await desk.ask() == "2!", "too old to be told"
    assert desk.looks == {"miss": 2, "hit": 2, "stale": 1}


@pytest.mark.parametrize(
    "other",
    [
        {"asker": Asker(tenant="bob", version="1")},
        {"asker": Asker(tenant="ann", version="2")},
        {"model": "n"},
        {"messages": (user("hi!"),)},
        {"messages": (user("hi"), user("hi"))},
        {"params": replace(GREEDY, max_tokens=5)},
        {"params": replace(GREEDY, stop=("x",))},
    ],
    ids=["tenant", "version", "model", "text", "history", "length", "stop"],
)
async def test_whatever_differs_is_written_anew(desk: Desk, other: dict[str, Any]) -> None:
    assert [await desk.ask(), await desk.ask(**other)] == ["0!", "1!"]


async def test_only_what_is_certain_to_be_the_same(desk: Desk) -> None:
    warm = replace(GREEDY, temperature=0.1, seed=1)
    assert [await desk.ask(params=warm), await desk.ask(params=warm)] == ["0!", "1!"]
    with_tools = replace(GREEDY, tools=("{}",))
    assert [await desk.ask(params=with_tools), await desk.ask(params=with_tools)] == ["2!", "3!"]
    assert [await desk.ask(params=replace(GREEDY, seed=seed)) for seed in (1, 2)] == ["4!", "4!"]
    assert desk.looks == {"miss": 1, "hit": 1}


async def test_off_by_default(author: Author, clock: FakeClock) -> None:
    desk = Desk(author, clock, ttl_s=ReplyCacheConfig().ttl_s)
    assert [await desk.ask(), await desk.ask()] == ["0!", "1!"]


async def test_a_crowd_asks_once(desk: Desk, author: Author) -> None:
    author.gate.clear()
    crowd = [asyncio.create_task(desk.ask()) for _ in range(10)]
    await asyncio.sleep(0)
    author.gate.set()
    assert set(await asyncio.gather(*crowd)) == {"0!"}
    assert (len(author.asked), desk.looks["shared"]) == (1, 9)


async def test_when_the_writer_leaves_one_of_those_who_wait_writes(desk: Desk, author: Author) -> None:
    author.gate.clear()
    first = asyncio.create_task(desk.ask())
    await asyncio.sleep(0)
    others = [asyncio.create_task(desk.ask()) for _ in range(3)]
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    author.gate.set()
    assert set(await asyncio.gather(*others)) == {"1!"}
    assert len(author.asked) == 2


async def test_what_was_not_finished_is_not_kept(desk: Desk, author: Author) -> None:
    pieces = desk.chat.stream("m", HI, GREEDY, ANN)
    assert (await anext(pieces)).text == "0"
    await pieces.aclose()
    assert await desk.ask() == "1!"
    author.error = Unavailable("down")
    with pytest.raises(Unavailable):
        await desk.ask(model="n")
    author.error = None
    assert await desk.ask(model="n") == "3!"


async def test_a_model_that_fails_leaves_its_stale_replies(desk: Desk, author: Author, clock: FakeClock) -> None:
    await desk.ask()
    author.error = Unavailable("down")
    clock.advance(15)
    for _ in range(2):
        assert await desk.ask() == "0!"
        await desk.refreshed()


async def test_publishing_and_forgetting_make_replies_go(desk: Desk) -> None:
    await desk.ask(replace(ANN, conversation_id="c"))
    await desk.ask(messages=(user("other"),))
    bob = Asker(tenant="bob", version="1", conversation_id="c")
    await desk.ask(bob)
    memory = desk.cache.kept.memory
    await desk.cache.forget_conversation("ann", "c")
    assert len(memory) == 2, "bob's conversation of the same name is his"
    await desk.ask(replace(ANN, version="2"))
    assert len(memory) == 2, "what version 1 said to ann has made room"
    await desk.cache.forget_conversation("bob", "c")
    assert len(memory) == 1


async def test_the_least_recently_told_makes_room() -> None:
    memory = MemoryKept(max_bytes=3 * 210)
    for name in "abc":
        await memory.put(name, Kept(body=b"x" * 10, made_at=0), ["t"], ttl_s=1)
    assert await memory.get("a")
    await memory.put("d", Kept(body=b"x" * 10, made_at=0), [], ttl_s=1)
    assert [name for name in "abcd" if await memory.get(name)] == ["a", "c", "d"]
    await memory.drop("t")
    assert (memory._num_bytes, memory._names) == (210, {})


async def test_the_newest_questions_are_asked_anew_of_what_is_published(author: Author, clock: FakeClock) -> None:
    desk = Desk(author, clock, warm_up=2)
    for text in ("a", "b", "c"):
        await desk.ask(messages=(user(text),))
    await desk.ask(replace(ANN, conversation_id="c"), messages=(user("private"),))
    newer = replace(ANN, version="2")
    assert await desk.ask(newer, messages=(user("d"),)) == "4!"
    await desk.refreshed()
    assert [messages[0].content for _, messages in author.asked[5:]] == ["c"], "the newest two: c, and d that was asked"
    assert await desk.ask(newer, messages=(user("c"),)) == "5!"
    assert len(author.asked) == 6


async def test_replicas_share_by_redis(author: Author, clock: FakeClock, redis_url: str) -> None:
    prefix = f"{ULID()}:"
    first, second = (Desk(author, clock, redis=RedisKept(redis_url, prefix=prefix)) for _ in range(2))
    assert [await first.ask(), await second.ask()] == ["0!", "0!"]
    assert await second.ask(Asker(tenant="bob", version="1")) == "1!"
    await second.cache.published(ANN, "m")
    await second.cache.published(replace(ANN, version="2"), "m")
    shared = second.cache.kept.shared
    assert shared is not None
    assert await shared.get(name_of(ANN, "m", HI, GREEDY)) is None
    assert await shared.get(name_of(Asker(tenant="bob", version="1"), "m", HI, GREEDY)) is not None
    await shared.put("odd", Kept(body=b"{}", made_at=clock.now()), [], ttl_s=9)
    assert await second.cache.get("odd") is None
    for desk in (first, second):
        await desk.cache.kept.close()


async def test_without_redis_each_replica_goes_on(author: Author, clock: FakeClock) -> None:
    desk = Desk(author, clock, redis=RedisKept("redis://127.0.0.1:1/0", prefix=""))
    assert [await desk.ask(), await desk.ask()] == ["0!", "0!"]
    await desk.cache.forget_conversation("ann", "c")
    await desk.cache.kept.close()


ASKS = st.lists(
    st.tuples(
        st.integers(0, 1),  # replica
        st.sampled_from(
            ["ann", "bob", 'a","model'],
        ),
        st.sampled_from(["1", "2"]),
        st.sampled_from(["m", "n", '2","m']),
        st.sampled_from(["hi", "ho"]),
        st.sampled_from([0.0, 0.0, 0.5]),
        st.sampled_from([0, 5, 15]),  # seconds that pass before
    ),
    max_size=25,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ASKS)
def test_a_reply_never_crosses_a_tenant_or_a_version(redis_url: str, asks: list[Any]) -> None:
    """Over two replicas that share a Redis, whatever is asked in whatever order."""
    asyncio.run(play(redis_url, asks))


async def play(redis_url: str, asks: list[Any]) -> None:
    author, clock, prefix = Author(), FakeClock(), f"{ULID()}:"
    desks = [Desk(author, clock, redis=RedisKept(redis_url, prefix=prefix)) for _ in range(2)]
    written_for: dict[str, tuple[Any, ...]] = {}
    for replica, tenant, version, model, text, temperature, seconds in asks:
        clock.advance(seconds)
        desk, num_before = desks[replica], len(author.asked)
        params = SamplingParams(temperature=temperature)
        asked_for = (tenant, version, model, text, temperature)
        reply = await desk.ask(
            Asker(tenant=tenant, version=version), model=model, messages=(user(text),), params=params
        )
        await desk.refreshed()
        for number in range(num_before, len(author.asked)):
            assert author.asked[number] == (model, (user(text),))
            written_for[f"{number}!"] = asked_for
        assert written_for[reply] == asked_for
    for desk in desks:
        await desk.cache.kept.close()
