"""Many chats through few engines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest

from chatgrpo.errors import InvalidRequest, NotFound, Unavailable
from chatgrpo.inference.chat_runner import ChatRunner, Speaker, fit_prompt
from chatgrpo.inference.engine import FinishReason, GenerationRequest, SamplingParams, TokenEvent
from chatgrpo.messages import assistant, system, user
from tests.fakes import ByteTokens, FakeEngine

PARAMS = SamplingParams(max_tokens=64)


class Template(ByteTokens):
    eos_ids = frozenset({ByteTokens.END})


class Models:
    """Loads speakers that echo the last message; every load is noted."""

    def __init__(self, script: Callable[[GenerationRequest], str] | None = None) -> None:
        self.loads: list[str] = []
        self.engines: dict[str, FakeEngine] = {}
        self.script = script

    def load(self, name: str) -> Speaker:
        if name.startswith("no-"):
            raise NotFound(f"model {name} does not exist")
        self.loads.append(name)
        self.engines[name] = engine = FakeEngine(self.script or (lambda request: f"{name}: {said(request)}"))
        return Speaker(engine=engine, template=Template(), context_window=128, version=f"{name}@0")


def said(request: GenerationRequest) -> str:
    ids = list(request.prompt_ids)
    start = len(ids) - ids[::-1].index(ByteTokens.ROLES["user"])
    return Template().decode(ids[start:])


@pytest.fixture
async def models() -> Models:
    return Models()


@pytest.fixture
async def runner(models: Models) -> AsyncIterator[ChatRunner]:
    runner = ChatRunner(models.load, max_models=2, room_timeout_s=0.05)
    yield runner
    runner.close()


async def reply(runner: ChatRunner, model: str, text: str, params: SamplingParams = PARAMS) -> str:
    return "".join([delta.text async for delta in runner.stream(model, [user(text)], params)])


async def test_pieces_carry_text_tokens_reason_and_version(runner: ChatRunner) -> None:
    deltas = [d async for d in runner.stream("m", [user("é!")], PARAMS)]
    assert "".join(d.text for d in deltas) == "m: é!"
    assert sum(d.num_tokens for d in deltas) == len("m: é!".encode()) + 1  # the end-of-turn token counts
    assert [d.finish_reason for d in deltas][-1] is FinishReason.STOP
    assert all(d.finish_reason is None for d in deltas[:-1])
    assert {d.model_version for d in deltas} == {"m@0"}


async def test_logprobs_are_told_of_every_token_when_asked_for(runner: ChatRunner) -> None:
    params = SamplingParams(max_tokens=64, logprobs=True)
    told = [t for d in [d async for d in runner.stream("m", [user("ab")], params)] for t in d.logprobs]
    assert "".join(t.text for t in told) == "m: ab"
    assert all(t.logprob <= 0 for t in told)
    assert not [t for d in [d async for d in runner.stream("m", [user("ab")], PARAMS)] for t in d.logprobs]


async def test_length_limit_is_the_finish_reason(runner: ChatRunner) -> None:
    deltas = [d async for d in runner.stream("m", [user("abc")], SamplingParams(max_tokens=4))]
    assert ("".join(d.text for d in deltas), deltas[-1].finish_reason) == ("m: a", FinishReason.LENGTH)


async def test_stop_text_ends_the_reply_and_cancels_the_rest(runner: ChatRunner, models: Models) -> None:
    params = SamplingParams(max_tokens=64, stop=("cd",))
    deltas = [d async for d in runner.stream("m", [user("abcdef")], params)]
    assert ("".join(d.text for d in deltas), deltas[-1].finish_reason) == ("m: ab", FinishReason.STOP)


async def test_concurrent_chats_share_one_engine(runner: ChatRunner, models: Models) -> None:
    texts = [f"chat number {i}" for i in range(20)]
    replies = await asyncio.gather(*(reply(runner, "m", text) for text in texts))
    assert replies == [f"m: {text}" for text in texts]
    assert models.loads == ["m"]


async def test_requests_that_come_while_others_run_join_their_batch() -> None:
    stepping, go_on = threading.Event(), threading.Event()

    class Gated(FakeEngine):
        def step(self) -> list[TokenEvent]:
            stepping.set()
            assert go_on.wait(10)
            return super().step()

    engine = Gated(said)
    runner = ChatRunner(
        lambda name: Speaker(engine=engine, template=Template(), context_window=128, version=name), max_models=1
    )
    first = asyncio.create_task(reply(runner, "m", "first"))
    await asyncio.to_thread(stepping.wait)
    others = [asyncio.create_task(reply(runner, "m", text)) for text in ("b", "c", "d")]
    await asyncio.sleep(0)  # the model is loaded, so one turn of the event loop takes all three into the inbox
    go_on.set()
    assert await asyncio.gather(first, *others) == ["first", "b", "c", "d"]
    assert engine.added_before_step[:2] == [["chat-0"], ["chat-1", "chat-2", "chat-3"]]
    runner.close()


async def test_leaving_early_takes_the_request_out_of_the_batch() -> None:
    engine = FakeEngine(lambda request: "x" * 10_000)
    runner = ChatRunner(
        lambda name: Speaker(engine=engine, template=Template(), context_window=20_000, version=name), max_models=1
    )
    async with aclosing(runner.stream("m", [user("hi")], SamplingParams(max_tokens=10_000))) as deltas:
        async for _ in deltas:
            break
    assert runner.status()["active_requests"] == 0
    runner.close()  # the thread has read the cancellation by its end
    assert engine.cancelled == ["chat-0"]
    assert not engine.has_work


async def test_least_recently_used_model_goes(runner: ChatRunner, models: Models) -> None:
    for name in ("a", "b", "a", "c"):
        await reply(runner, name, "x")
    assert runner.status()["loaded_models"] == ["a", "c"]
    await reply(runner, "b", "x")
    assert models.loads == ["a", "b", "c", "b"]


async def test_a_model_in_use_never_goes_and_the_waiting_one_is_told(runner: ChatRunner) -> None:
    async with (
        aclosing(runner.stream("a", [user("x")], PARAMS)) as one,
        aclosing(runner.stream("b", [user("x")], PARAMS)) as two,
    ):
        await anext(one)
        await anext(two)
        with pytest.raises(Unavailable, match="all 2 model places"):
            await reply(runner, "c", "x")
    assert await reply(runner, "c", "x") == "c: x"


async def test_simultaneous_first_requests_load_once(runner: ChatRunner, models: Models) -> None:
    await asyncio.gather(*(reply(runner, "m", "x") for _ in range(5)))
    assert models.loads == ["m"]


async def test_unknown_model_is_not_found_and_can_be_asked_again(runner: ChatRunner) -> None:
    for _ in range(2):
        with pytest.raises(NotFound, match="no-such"):
            await reply(runner, "no-such", "x")
    assert await reply(runner, "m", "x") == "m: x"


async def test_an_engine_that_breaks_ends_its_replies_only(models: Models) -> None:
    class Broken(FakeEngine):
        def step(self) -> list[TokenEvent]:
            raise RuntimeError("out of memory")

    def load(name: str) -> Speaker:
        if name == "bad":
            return Speaker(engine=Broken(said), template=Template(), context_window=128, version=name)
        return models.load(name)

    runner = ChatRunner(load, max_models=2)
    good, bad = await asyncio.gather(reply(runner, "good", "x"), reply(runner, "bad", "x"), return_exceptions=True)
    assert good == "good: x"
    assert isinstance(bad, Unavailable)
    runner.close()


async def test_closing_ends_replies_with_unavailable() -> None:
    engine = FakeEngine(lambda request: "x" * 100_000)
    runner = ChatRunner(
        lambda name: Speaker(engine=engine, template=Template(), context_window=200_000, version=name), max_models=1
    )
    deltas = runner.stream("m", [user("hi")], SamplingParams(max_tokens=100_000))
    await anext(deltas)
    await asyncio.to_thread(runner.close)
    with pytest.raises(Unavailable, match="shutting down"):
        async for _ in deltas:
            pass
    with pytest.raises(Unavailable, match="shutting down"):
        await reply(runner, "m", "again")


def speaker(window: int) -> Speaker:
    return Speaker(engine=FakeEngine(said), template=Template(), context_window=window, version="m")


def test_old_turns_are_left_out_and_system_messages_stay() -> None:
    messages = [system("s"), user("one"), assistant("1"), user("two"), assistant("2"), user("three")]
    ids = fit_prompt(speaker(30), messages, max_tokens=8)
    assert Template().decode(ids) == "stwo2three"
    assert Template().decode(fit_prompt(speaker(64), messages, max_tokens=8)) == "sone1two2three"


def test_a_message_that_cannot_fit_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="context window of 16") as refused:
        fit_prompt(speaker(16), [user("a long message")], max_tokens=8)
    assert refused.value.field == "message"
    with pytest.raises(InvalidRequest) as refused:
        fit_prompt(speaker(16), [user("a")], max_tokens=16)
    assert refused.value.field == "max_tokens"
