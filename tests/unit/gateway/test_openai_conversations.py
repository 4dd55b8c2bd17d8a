"""OpenAI's conversations, with the official client."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

MESSAGES: Any = [
    {"type": "message", "role": "user", "content": "2 + 2?"},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "4", "annotations": []}]},
]


@pytest.fixture
def official(app: FastAPI) -> openai.AsyncOpenAI:
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app))
    return openai.AsyncOpenAI(base_url="http://platform/v1", api_key="none", http_client=http, max_retries=0)


async def test_a_conversation_from_its_beginning_to_its_end(
    official: openai.AsyncOpenAI, client: httpx.AsyncClient
) -> None:
    made = await official.conversations.create(items=MESSAGES, metadata={"topic": "sums"})
    assert (made.object, made.metadata) == ("conversation", {"topic": "sums"})
    changed = await official.conversations.update(made.id, metadata={"topic": "maths"})
    assert changed.metadata == {"topic": "maths"}
    assert (await official.conversations.retrieve(made.id)).metadata == {"topic": "maths"}
    added = await official.conversations.items.create(made.id, items=MESSAGES[:1])
    assert [item.content[0].text for item in added.data] == ["2 + 2?"]  # type: ignore[union-attr]
    same = (await client.get(f"/api/v2/conversations/{made.id}/messages")).json()
    assert [message["content"] for message in same["messages"]] == ["2 + 2?", "4", "2 + 2?"]
    gone = await official.conversations.delete(made.id)
    assert gone.deleted
    with pytest.raises(openai.NotFoundError):
        await official.conversations.retrieve(made.id)


async def test_items_page_by_page_both_ways(official: openai.AsyncOpenAI) -> None:
    made = await official.conversations.create()
    for number in range(5):
        item: Any = {"type": "message", "role": "user", "content": str(number)}
        await official.conversations.items.create(made.id, items=[item])
    for order, expected in (("asc", "01234"), ("desc", "43210")):
        pages = official.conversations.items.list(made.id, order=order, limit=2)  # type: ignore[arg-type]
        assert "".join([item.content[0].text async for item in pages]) == expected  # type: ignore[union-attr]
    (first, *_) = (await official.conversations.items.list(made.id, order="asc")).data
    found = await official.conversations.items.retrieve(first.id or "", conversation_id=made.id)
    assert found.content[0].text == "0"  # type: ignore[union-attr]
    with pytest.raises(openai.NotFoundError):
        await official.conversations.items.retrieve("msg_99", conversation_id=made.id)
    with pytest.raises(openai.UnprocessableEntityError, match="msg_1"):
        await official.conversations.items.retrieve("0", conversation_id=made.id)


async def test_what_is_not_kept_is_refused_by_name(client: httpx.AsyncClient) -> None:
    for items in ([{"type": "function_call"}], [{"role": "user", "content": [{"type": "input_image"}]}]):
        answer = await client.post("/v1/conversations", json={"items": items})
        assert answer.status_code == 422
        assert answer.json()["error"]["field"].startswith("items[0]")
