from __future__ import annotations

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
