"""The official client against the API on a real server of this machine, and a plain reading of what is streamed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from chatgrpo.api.app import create_app
from chatgrpo.api.services import Services
from chatgrpo.errors import Unavailable
from chatgrpo.gateway.config import GatewayConfig
from chatgrpo.gateway.gateway import Gateway
from chatgrpo.gateway.identity import LOCAL
from chatgrpo.gateway.roles import Role
from tests.fake_services import FakeChat, FakeJobs

MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello"}]


@pytest.fixture
async def server(services: Services) -> AsyncIterator[tuple[str, Gateway]]:
    """The address of a uvicorn on a free port, and its gateway."""
    config = services.config.model_copy(update={"gateway": GatewayConfig()})
    app = create_app(
        Services(
            config=config,
            clock=services.clock,
            jobs=services.jobs,
            chat=services.chat,
            conversations=services.conversations,
        )
    )
    uvicorn_server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    running = asyncio.create_task(uvicorn_server.serve())
    while not uvicorn_server.started:  # noqa: ASYNC110 (uvicorn has no event for it)
        await asyncio.sleep(0.01)
    port = uvicorn_server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}", app.state.gateway
    uvicorn_server.should_exit = True
    await running


@pytest.fixture
async def official(server: tuple[str, Gateway]) -> AsyncIterator[openai.AsyncOpenAI]:
    url, gateway = server
    key = (await gateway.keyring.create(LOCAL, name="sdk", role=Role.USER)).key
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        yield client


async def test_the_official_client_chats(official: openai.AsyncOpenAI, speaker: FakeChat) -> None:
    answer = await official.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=9, temperature=0, n=2, seed=5, stop=["END"]
    )
    assert [choice.message.content for choice in answer.choices] == ["Hello", "Hello"]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (4, 8, 12)
    assert (answer.object, answer.model, answer.system_fingerprint) == ("chat.completion", "tiny", "tiny@0")
    params = [call[2] for call in speaker.calls]
    assert sorted(p.seed or 0 for p in params) == [5, 6]
    assert {(p.max_tokens, p.temperature, p.stop) for p in params} == {(9, 0.0, ("END",))}
    assert speaker.calls[0][1] == MESSAGES


async def test_the_official_client_streams(official: openai.AsyncOpenAI) -> None:
    stream = await official.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (4, 4)


async def test_the_official_client_is_told_logprobs(official: openai.AsyncOpenAI) -> None:
    whole = await official.chat.completions.create(model="tiny", messages=MESSAGES, logprobs=True)
    told = whole.choices[0].logprobs
    assert told is not None
    assert [(t.token, t.logprob, t.bytes) for t in told.content or []] == [
        ("Hel", -0.5, [72, 101, 108]),
        ("lo", -0.5, [108, 111]),
    ]
    stream = await official.chat.completions.create(model="tiny", messages=MESSAGES, logprobs=True, stream=True)
    tokens = [t.token async for c in stream if c.choices[0].logprobs for t in c.choices[0].logprobs.content or []]
    assert tokens == ["Hel", "lo"]
    plain = await official.chat.completions.create(model="tiny", messages=MESSAGES)
    assert plain.choices[0].logprobs is None


TOOLS: Any = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALL = ("Sure. <tool", '_call>\n{"name": "add", "arguments": {"a": 1}}', "\n</tool_call>")


async def test_calls_of_tools_whole_and_streamed(official: openai.AsyncOpenAI, speaker: FakeChat) -> None:
    speaker.pieces = CALL
    whole = await official.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS)
    (choice,) = whole.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Sure.")
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 1})
    assert [json.loads(tool) for tool in speaker.calls[0][2].tools] == TOOLS
    chunks = [
        chunk.choices[0]
        async for chunk in await official.chat.completions.create(
            model="tiny", messages=MESSAGES, tools=TOOLS, stream=True
        )
    ]
    assert "".join(c.delta.content or "" for c in chunks) == "Sure. "
    (told,) = [c.delta.tool_calls for c in chunks if c.delta.tool_calls]
    assert told[0].function is not None
    assert (told[0].index, told[0].function.name) == (0, "add")
    assert chunks[-1].finish_reason == "tool_calls"


async def test_an_answered_call_goes_back_to_the_model(official: openai.AsyncOpenAI, speaker: FakeChat) -> None:
    called: Any = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    talk: Any = [
        *MESSAGES,
        {"role": "assistant", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]
    await official.chat.completions.create(model="tiny", messages=talk, tools=TOOLS, tool_choice="none")
    (_, messages, params) = speaker.calls[0]
    assert params.tools == (), "none are shown"
    assert messages[2]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}
    assert messages[3]["content"] == "3"
    with pytest.raises(openai.UnprocessableEntityError, match="no message before it"):
        await official.chat.completions.create(model="tiny", messages=[*MESSAGES, talk[-1]])


async def test_without_tools_the_text_is_left_alone(official: openai.AsyncOpenAI, speaker: FakeChat) -> None:
    speaker.pieces = CALL
    whole = await official.chat.completions.create(model="tiny", messages=MESSAGES)
    assert whole.choices[0].message.content == "".join(CALL)
    speaker.pieces = ("<tool_call>{broken",)
    broken = await official.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS)
    assert broken.choices[0].message.content == "<tool_call>{broken"
    assert broken.choices[0].finish_reason == "stop"


async def test_a_cached_reply_tells_logprobs_too(official: openai.AsyncOpenAI, speaker: FakeChat) -> None:
    for _ in range(2):
        told = await official.chat.completions.create(model="tiny", messages=MESSAGES, logprobs=True, temperature=0)
        assert told.choices[0].logprobs is not None
        assert [t.token for t in told.choices[0].logprobs.content or []] == ["Hel", "lo"]


async def test_the_official_client_lists_models(official: openai.AsyncOpenAI, jobs: FakeJobs) -> None:
    jobs.put("done", status="succeeded", owner="local")
    models = {model.id: model async for model in await official.models.list()}
    assert (models["tiny"].owned_by, models["tiny"].created) == ("chatgrpo:base", 0)
    assert (models["done"].owned_by, models["done"].created) == ("chatgrpo:job", 1767323045)
    assert (await official.models.retrieve("done")).id == "done"
    with pytest.raises(openai.NotFoundError):
        await official.models.retrieve("nobody")


async def test_errors_are_those_the_client_knows(official: openai.AsyncOpenAI, speaker: FakeChat) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await official.chat.completions.create(model="gpt-5", messages=MESSAGES)
    with pytest.raises(openai.AuthenticationError):
        await official.with_options(api_key="sk-nothing").chat.completions.create(model="tiny", messages=MESSAGES)
    speaker.error = Unavailable("no replica")
    with pytest.raises(openai.InternalServerError, match="no replica"):
        await official.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    speaker.error_at = 1
    with pytest.raises(openai.APIError, match="no replica"):
        async for _ in await official.chat.completions.create(model="tiny", messages=MESSAGES, stream=True):
            pass


async def test_a_client_that_leaves_cancels_its_replies(official: openai.AsyncOpenAI, speaker: FakeChat) -> None:
    speaker.hold = True
    stream = await official.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    await speaker.started.wait()
    await stream.close()
    await asyncio.wait_for(speaker.cancelled.wait(), 5)


async def test_the_stream_as_bytes(client: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "stream": True, "n": 2}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    for index in (0, 1):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(c["delta"].get("content", "") for c in mine) == "Hello"
        assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + ["stop"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"logprobs": True, "top_logprobs": 3}, "top_logprobs"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"stop": ["a"] * 9}, "stop"),
        ({"stop": ""}, "stop"),
        ({"n": 0}, "n"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"logit_bias": {}}, "logit_bias"),
    ],
)
async def test_what_is_not_done_is_refused_by_name(
    client: httpx.AsyncClient, change: dict[str, Any], field: str
) -> None:
    answer = await client.post("/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES} | change)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["field"].startswith(field)
