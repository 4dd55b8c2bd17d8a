"""Conversations over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from chatgrpo.environments.config import DatasetConfig
from chatgrpo.environments.dataset import dataset_source
from chatgrpo.messages import assistant, user
from chatgrpo.state.conversations import Conversations

URL = "/api/v2/conversations"
HELLO = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


async def made(client: httpx.AsyncClient, **body: Any) -> str:
    answer = await client.post(URL, json=body)
    assert answer.status_code == 201
    return str(answer.json()["id"])


async def test_create_continue_read(client: httpx.AsyncClient) -> None:
    id_ = await made(client, user_id="u", context={"lang": "de"})
    answer = await client.post(f"{URL}/{id_}/messages", json=HELLO, headers={"If-Match": '"0"'})
    assert (answer.status_code, answer.json()["version"], answer.headers["ETag"]) == (201, 2, '"2"')
    found = (await client.get(f"{URL}/{id_}/messages", params={"max_messages": 1})).json()
    assert [(m["version"], m["role"], m["content"]) for m in found["messages"]] == [(2, "assistant", "hello")]
    assert found["is_whole"] is False
    head = (await client.get(f"{URL}/{id_}")).json()
    assert (head["version"], head["num_messages"], head["context"]) == (2, 2, {"lang": "de"})
    page = (await client.get(URL, params={"user_id": "u"})).json()
    assert [c["id"] for c in page["conversations"]] == [id_]


async def test_a_stale_writer_gets_409_with_the_current_version(client: httpx.AsyncClient) -> None:
    id_ = await made(client)
    await client.post(f"{URL}/{id_}/messages", json=HELLO)
    for conditional in ({"headers": {"If-Match": '"0"'}, "json": HELLO}, {"json": {**HELLO, "expected_version": 0}}):
        answer = await client.post(f"{URL}/{id_}/messages", **conditional)  # type: ignore[arg-type]
        assert answer.status_code == 409
        assert answer.json()["error"]["current_version"] == 2
    both = await client.post(
        f"{URL}/{id_}/messages", json={**HELLO, "expected_version": 2}, headers={"If-Match": '"1"'}
    )
    assert both.status_code == 422


async def test_unknown_and_foreign_are_404(client: httpx.AsyncClient, conversations: Conversations) -> None:
    await conversations.create("theirs", tenant="somebody-else")
    answers = [await client.get(f"{URL}/{id_}") for id_ in ("theirs", "nobodys")]
    assert [answer.status_code for answer in answers] == [404, 404]
    first, second = (answer.json()["error"]["message"] for answer in answers)
    assert first.replace("theirs", "nobodys") == second
    for path, body in (("messages", HELLO), ("rollback", {"to_version": 0}), ("fork", {})):
        assert (await client.post(f"{URL}/theirs/{path}", json=body)).status_code == 404
    assert (await client.delete(f"{URL}/theirs")).status_code == 404


async def test_bad_input_is_named(client: httpx.AsyncClient) -> None:
    id_ = await made(client)
    cases = [
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0"),
        ({"messages": []}, "messages"),
        ({**HELLO, "metadata": [{}]}, "metadata"),
        ({**HELLO, "surprise": 1}, "surprise"),
    ]
    for body, field in cases:
        answer = await client.post(f"{URL}/{id_}/messages", json=body)
        assert answer.status_code == 422
        assert answer.json()["error"]["field"] == field
    for header in ({"If-Match": "soon"}, {"X-Session-Token": "garbage"}):
        assert (await client.post(f"{URL}/{id_}/messages", json=HELLO, headers=header)).status_code == 422
    assert (await client.get(f"{URL}/{id_}?consistency=psychic")).status_code == 422


async def test_too_large_names_the_limit(client: httpx.AsyncClient, conversations: Conversations) -> None:
    id_ = await made(client)
    many = {"messages": [{"role": "user", "content": "x"}] * 300}
    answer = await client.post(f"{URL}/{id_}/messages", json=many)
    assert answer.status_code == 413
    assert "max_messages_per_append is 256" in answer.json()["error"]["message"]


async def test_fork_rollback_history_context_delete(client: httpx.AsyncClient) -> None:
    id_ = await made(client)
    await client.post(f"{URL}/{id_}/messages", json=HELLO)
    fork = await client.post(f"{URL}/{id_}/fork", json={"at_version": 1, "conversation_id": "f"})
    assert (fork.status_code, fork.json()["forked_from"], fork.json()["num_messages"]) == (201, f"{id_}@1", 1)
    back = await client.post(f"{URL}/{id_}/rollback", json={"to_version": 1}, headers={"If-Match": '"2"'})
    assert back.json()["version"] == 3
    past = (await client.get(f"{URL}/{id_}/history", params={"at_version": 2})).json()
    assert [m["content"] for m in past["messages"]] == ["hi", "hello"]
    assert (await client.put(f"{URL}/{id_}/context", json={"context": {"k": 1}})).json()["version"] == 4
    assert (await client.get(f"{URL}/{id_}")).json()["context"] == {"k": 1}
    assert (await client.delete(f"{URL}/{id_}")).status_code == 204
    assert (await client.get(f"{URL}/{id_}")).status_code == 404


async def test_the_session_token_travels(client: httpx.AsyncClient) -> None:
    id_ = await made(client)
    written = await client.post(f"{URL}/{id_}/messages", json=HELLO)
    token = written.headers["X-Session-Token"]
    read = await client.get(f"{URL}/{id_}/messages?consistency=causal", headers={"X-Session-Token": token})
    assert read.headers["X-Session-Token"] == token
    assert read.headers["ETag"] == '"2"'


async def test_export_is_read_by_the_training_data_loader(client: httpx.AsyncClient, tmp_path: Path) -> None:
    id_ = await made(client, user_id="u")
    turns = [("2+2?", "5"), ("3+3?", "6"), ("4+4?", "9")]
    messages = [m.to_dict() for question, reply in turns for m in (user(question), assistant(reply))]
    await client.post(f"{URL}/{id_}/messages", json={"messages": messages})
    for judgement in ({"version": 2, "score": -1, "corrected": "4"}, {"version": 4, "score": 1, "label": "right"}):
        assert (await client.post(f"{URL}/{id_}/feedback", json=judgement)).status_code == 201
    refused = await client.post(f"{URL}/{id_}/feedback", json={"version": 1, "score": 1})
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "version")
    answer = await client.get(f"{URL}/export")
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    file = tmp_path / "feedback.jsonl"
    file.write_bytes(answer.content)
    assert len([json.loads(line) for line in answer.text.splitlines()]) == 2
    tasks = dataset_source(DatasetConfig(paths=[str(file)]), split="train", num_eval=0)
    found = [tasks.task(index) for index in range(len(tasks))]
    assert sorted((task.messages[-1].content, task.answer) for task in found) == [("2+2?", "4"), ("3+3?", "6")]
    everything = await client.get(f"{URL}/export", params={"include": "all"})
    assert len(everything.text.splitlines()) == 3


async def test_snapshots(client: httpx.AsyncClient) -> None:
    id_ = await made(client)
    taken = await client.post("/api/v2/snapshots", json={"name": "before"})
    assert (taken.status_code, taken.json()["num_conversations"]) == (201, 1)
    await client.post(f"{URL}/{id_}/messages", json=HELLO)
    restored = (await client.post(f"/api/v2/snapshots/{taken.json()['id']}/restore")).json()
    assert (restored["num_changed"], restored["gone"]) == (1, [])
    assert (await client.get(f"{URL}/{id_}")).json()["num_messages"] == 0
    names = [s["name"] for s in (await client.get("/api/v2/snapshots")).json()["snapshots"]]
    assert names == [f"before {taken.json()['id']}", "before"]
    assert (await client.delete(f"/api/v2/snapshots/{restored['undo']}")).status_code == 204
    assert (await client.post(f"/api/v2/snapshots/{restored['undo']}/restore")).status_code == 404
