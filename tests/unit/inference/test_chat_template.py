from __future__ import annotations

from typing import Any

import pytest

from chatgrpo.errors import InvalidRequest
from chatgrpo.inference.chat_template import ChatTemplate
from chatgrpo.inference.loading import LoadedModel
from chatgrpo.messages import assistant, tool, user


def ids(model: LoadedModel, text: str) -> list[int]:
    return list(model.template.tokenizer.encode(text, add_special_tokens=False))


def test_a_continued_conversation_has_the_ids_of_the_whole(tiny: LoadedModel) -> None:
    template = tiny.template
    whole = template.prompt_ids([user("hi"), assistant("yes"), tool("42"), user("more")])
    first = template.prompt_ids([user("hi")])
    delta = template.continuation_ids([tool("42"), user("more")], closed=True)
    reply = ids(tiny, "yes<|end|>")
    assert first + reply + delta == whole


def test_an_open_reply_is_closed_by_the_continuation(tiny: LoadedModel) -> None:
    open_delta = tiny.template.continuation_ids([user("x")], closed=False)
    closed_delta = tiny.template.continuation_ids([user("x")], closed=True)
    assert open_delta == [tiny.template.tokenizer.eos_token_id, *closed_delta]


def test_decode_leaves_special_tokens_out_and_keeps_spaces(tiny: LoadedModel) -> None:
    assert tiny.template.decode(ids(tiny, "a  b\n{c}<|end|>")) == "a  b\n{c}"


class ToolTokenizer:
    """Records what its template is given."""

    eos_token_id = 0

    def __init__(self, chat_template: str) -> None:
        self.chat_template = chat_template
        self.given: Any = None

    def apply_chat_template(self, messages: Any, *, tools: Any, tokenize: bool, add_generation_prompt: bool) -> str:
        self.given = tools
        return "prompt"

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [len(text)]


def test_tools_reach_a_template_that_teaches_calls() -> None:
    tokenizer = ToolTokenizer("{% if tools %}{{ tools | tojson }} write <tool_call>{% endif %}")
    tool = {"type": "function", "function": {"name": "add"}}
    assert ChatTemplate(tokenizer).prompt_ids([user("2+2?")], [tool]) == [6]
    assert tokenizer.given == [tool]
    ChatTemplate(tokenizer).prompt_ids([user("2+2?")])
    assert tokenizer.given is None


def test_a_template_without_tools_refuses_them_by_name() -> None:
    for template in ("{{ messages }}", "{{ messages }} {{ tools }}"):
        with pytest.raises(InvalidRequest, match="takes no tools") as refused:
            ChatTemplate(ToolTokenizer(template)).prompt_ids([user("2+2?")], [{"type": "function"}])
        assert refused.value.field == "tools"
