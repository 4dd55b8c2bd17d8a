"""POST /api/v2/chat: whole and streamed, remembered, refused, cancelled."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message as AsgiMessage

from chatgrpo.errors import InvalidRequest, Unavailable
from chatgrpo.inference.engine import SamplingParams
from chatgrpo.messages import user
from chatgrpo.state.conversations import Conversations
from tests.fake_services import FakeChat, FakeJobs
from tests.fakes import FakeClock


async def say(client: httpx.AsyncClient, message: str = "Hi", **more: Any) -> httpx.Response:
    return await client.post("/api/v2/chat", json={"message": message, **more})


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
    return [(block["event"], json.loads(block["data"])) for block in blocks]


async def test_a_first_message_begins_a_conversation(client: httpx.AsyncClient, speaker: FakeChat) -> None:
    answer = await say(client, context={"plan": "gold"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body == {
        "conversation_id": body["conversation_id"],
        "response": "Hello",
        "context": {"plan": "gold"},
        "turn_count": 1,
        "version": 2,
        "metadata": {
            "strategy": "default",
            "response_time": 0.0,
            "tokens_generated": 4,
            "model": "tiny",
            "model_version": "tiny@0",
            "finish_reason": "stop",
        },
    }
    assert speaker.calls == [
        ("tiny", [{"role": "user", "content": "Hi"}], SamplingParams(max_tokens=512, temperature=0.7))
    ]


async def test_a_second_message_sees_the_first(
    client: httpx.AsyncClient, speaker: FakeChat, conversations: Conversations
) -> None:
    first = (await say(client, context={"a": 1}, user_id="u")).json()
    second = (await say(client, "More", conversation_id=first["conversation_id"], context={"b": 2})).json()
    assert (second["turn_count"], second["context"]) == (2, {"a": 1, "b": 2})
    assert [m["content"] for m in speaker.calls[1][1]] == ["Hi", "Hello", "More"]
    kept = await conversations.read(first["conversation_id"], tenant="local")
    assert [t.message.content for t in kept] == ["Hi", "Hello", "More", "Hello"]
    assert kept[1].metadata == {
        "model_version": "tiny@0",
        "finish_reason": "stop",
        "model": "tiny",
        "strategy": "default",
    }
    assert (await conversations.get(first["conversation_id"], tenant="local")).user_id == "u"


async def test_strategy_is_a_preset_and_fields_win_over_it(client: httpx.AsyncClient, speaker: FakeChat) -> None:
    await say(client, strategy="advanced")
    await say(client, strategy="precise", max_tokens=7, seed=3, stop=["\n"])
    await say(client, strategy="advanced", temperature=0.0, top_k=0, top_p=0.5)
    assert [call[2] for call in speaker.calls] == [
        SamplingParams(max_tokens=512, temperature=0.7, top_p=0.9, top_k=50),
        SamplingParams(max_tokens=7, temperature=0.0, seed=3, stop=("\n",)),
        SamplingParams(max_tokens=512, temperature=0.0, top_p=0.5, top_k=0),
    ]


async def test_stream_is_pieces_and_then_the_whole_answer(client: httpx.AsyncClient) -> None:
    answer = await say(client, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    assert [name for name, _ in events] == ["start", "delta", "delta", "done"]
    assert [data["text"] for name, data in events if name == "delta"] == ["Hel", "lo"]
    done = events[-1][1]
    assert (done["response"], done["turn_count"], done["metadata"]["tokens_generated"]) == ("Hello", 1, 4)
    assert done["conversation_id"] == events[0][1]["conversation_id"]


async def test_response_time_is_measured(
    client: httpx.AsyncClient, speaker: FakeChat, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = speaker.stream

    def slow(*args: Any) -> Any:
        clock.advance(2.5)
        return stream(*args)

    monkeypatch.setattr(speaker, "stream", slow)
    assert (await say(client)).json()["metadata"]["response_time"] == 2.5


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({}, "message", "is required"),
        ({"message": ""}, "message", "at least 1 character"),
        ({"message": 5}, "message", "valid string"),
        ({"message": "x", "messages": []}, "messages", "unknown field"),
        ({"message": "x", "temperature": -0.1}, "temperature", "greater than or equal to 0"),
        ({"message": "x", "temperature": "hot"}, "temperature", "valid number"),
        ({"message": "x", "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"message": "x", "max_tokens": True}, "max_tokens", "valid integer"),
        ({"message": "x", "max_tokens": 2.5}, "max_tokens", "valid integer"),
        ({"message": "x", "strategy": "wild"}, "strategy", "one of advanced, creative, default, precise"),
        ({"message": "x", "stop": [""]}, "stop", "must not be empty"),
        ({"message": "x", "context": [1]}, "context", "valid dictionary"),
        ({"message": "x", "stream": "yes"}, "stream", "valid boolean"),
        ({"message": "x", "seed": 2**63}, "seed", "less than"),
    ],
)
async def test_a_wrong_field_is_named(
    client: httpx.AsyncClient, speaker: FakeChat, body: dict[str, Any], field: str, message: str
) -> None:
    answer = await client.post("/api/v2/chat", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (422, field)
    assert message in error["message"]
    assert speaker.calls == []


@pytest.mark.parametrize("text", [r"\ud800", r"\u0000"])
async def test_odd_characters_are_no_server_error(client: httpx.AsyncClient, text: str) -> None:
    content = f'{{"message": "x{text}", "context": {{"k": "{text}"}}, "user_id": "{text}"}}'
    answer = await client.post("/api/v2/chat", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in {200, 422}, answer.text


async def test_not_a_number_is_refused(client: httpx.AsyncClient) -> None:
    content = '{"message": "x", "temperature": NaN}'
    answer = await client.post("/api/v2/chat", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "temperature")


async def test_unknown_conversation_is_404(client: httpx.AsyncClient, speaker: FakeChat) -> None:
    assert (await say(client, conversation_id="nope")).status_code == 404
    assert speaker.calls == []


async def test_another_users_conversation_is_404(client: httpx.AsyncClient) -> None:
    mine = (await say(client, user_id="ann")).json()["conversation_id"]
    assert (await say(client, user_id="bob", conversation_id=mine)).status_code == 404
    assert (await say(client, user_id="ann", conversation_id=mine)).status_code == 200


async def test_a_finished_job_is_a_model(client: httpx.AsyncClient, jobs: FakeJobs, speaker: FakeChat) -> None:
    jobs.put("j1", status="succeeded")
    assert (await say(client, model="j1")).json()["metadata"]["model_version"] == "j1@0"
    assert speaker.calls[0][0] == "j1"


async def test_a_job_that_has_not_finished_is_a_conflict(client: httpx.AsyncClient, jobs: FakeJobs) -> None:
    jobs.put("j1", status="running")
    answer = await say(client, model="j1")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    assert "job j1 is running" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["gpt-9", "theirs", "/etc", "../tiny", "Qwen/Qwen3-0.6B"])
async def test_unknown_models_are_404(client: httpx.AsyncClient, jobs: FakeJobs, speaker: FakeChat, name: str) -> None:
    jobs.put("theirs", status="succeeded", owner="somebody-else")
    answer = await say(client, model=name)
    assert (answer.status_code, speaker.calls) == (404, [])
    assert "GET /api/v2/models" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_piece_has_its_own_status(
    client: httpx.AsyncClient, speaker: FakeChat, conversations: Conversations, stream: bool
) -> None:
    speaker.error = Unavailable("all places are taken", retry_after_s=7.0)
    answer = await say(client, stream=stream)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert (await conversations.list(tenant="local")).conversations == ()


async def test_an_error_in_the_middle_of_a_stream_is_its_last_event(
    client: httpx.AsyncClient, speaker: FakeChat, conversations: Conversations
) -> None:
    speaker.error, speaker.error_at = InvalidRequest("too long", "message"), 1
    events = events_of((await say(client, stream=True)).text)
    assert [name for name, _ in events] == ["start", "delta", "error"]
    assert events[-1][1] == {"error": {"code": "invalid_request", "message": "too long", "field": "message"}}
    assert (await conversations.list(tenant="local")).conversations == ()


async def test_somebody_who_wrote_meanwhile_is_a_conflict(
    client: httpx.AsyncClient, speaker: FakeChat, conversations: Conversations, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = (await say(client)).json()["conversation_id"]
    read_recent = conversations.read_recent

    async def raced(*args: Any, **kwargs: Any) -> Any:
        window = await read_recent(*args, **kwargs)
        await conversations.append(id_, [user("me first")], tenant="local")
        return window

    monkeypatch.setattr(conversations, "read_recent", raced)
    answer = await say(client, conversation_id=id_)
    assert (answer.status_code, answer.json()["error"]["current_version"]) == (409, 3)
    kept = await conversations.read(id_, tenant="local")
    assert [t.message.content for t in kept] == ["Hi", "Hello", "me first"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_its_reply(
    app: FastAPI, speaker: FakeChat, conversations: Conversations, stream: bool
) -> None:
    speaker.hold = True
    body = json.dumps({"message": "Hi", "stream": stream}).encode()
    inbox: list[AsgiMessage] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> AsgiMessage:
        if inbox:
            return inbox.pop()
        await speaker.started.wait()
        return {"type": "http.disconnect"}

    async def send(message: AsgiMessage) -> None:
        pass

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "method": "POST",
        "path": "/api/v2/chat",
        "raw_path": b"/api/v2/chat",
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"platform")],
        "server": ("platform", 80),
        "client": ("127.0.0.1", 1),
    }
    await asyncio.wait_for(app(scope, receive, send), 5)
    assert speaker.cancelled.is_set()
    assert (await conversations.list(tenant="local")).conversations == ()
