"""From messages to token ids and back, without ever tokenising a sampled reply again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from chatgrpo.errors import InvalidRequest
from chatgrpo.messages import Message, Role, assistant, user

# Stands for a reply when the text around a reply is wanted; no template or message contains it.
_REPLY = "\u2063reply\u2063"


class ChatTemplate:
    """A tokenizer with its chat template. `eos_ids` end a reply."""

    def __init__(self, tokenizer: Any, eos_ids: Sequence[int] | None = None) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise InvalidRequest("the model's tokenizer has no chat template; use an instruct model", "model")
        self.tokenizer = tokenizer
        self.eos_ids = frozenset(eos_ids or [tokenizer.eos_token_id])
        self._after_reply = lru_cache(maxsize=1024)(self._render_after_reply)

    @property
    def takes_tools(self) -> bool:
        """Whether the template shows tools to the model and teaches it to call them as `<tool_call>{...}`."""
        text = str(self.tokenizer.chat_template)
        return "tools" in text and "<tool_call>" in text

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The conversation so far, up to and including the opening of the assistant's next turn. Raises InvalidRequest
        for `tools` when the template takes none."""
        if tools and not self.takes_tools:
            raise InvalidRequest("the chat template of this model takes no tools; ask another model", "tools")
        return self._encode(self._render(messages, add_generation_prompt=True, tools=tools))

    def continuation_ids(self, new_messages: Sequence[Message], *, closed: bool) -> list[int]:
        """What follows a sampled reply: the end of its turn (less the EOS token if the reply is `closed` by it), the
        new messages, the opening of the next reply."""
        text = self._after_reply(tuple(new_messages))
        if closed:
            eos = next((t for t in self._eos_texts() if text.startswith(t)), "")
            text = text.removeprefix(eos)
        return self._encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _render_after_reply(self, new_messages: tuple[Message, ...]) -> str:
        before = [user("."), assistant(_REPLY)]
        text = self._render([*before, *new_messages], add_generation_prompt=True)
        _, found, after = text.partition(_REPLY)
        if not found:
            raise InvalidRequest(
                "the model's chat template drops earlier replies; multi-turn training needs them", "model"
            )
        return after

    def _eos_texts(self) -> list[str]:
        return [self.tokenizer.convert_ids_to_tokens(i) for i in self.eos_ids]

    def _render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool, tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [m.to_dict() for m in messages],
                    tools=[dict(tool) for tool in tools] or None,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                )
            )
        except Exception as error:
            # Templates are programs of the model's author: whatever they raise is about these messages.
            roles = ", ".join(str(Role(m.role)) for m in messages)
            raise InvalidRequest(
                f"the model's chat template refuses the roles [{roles}]: {error}", "messages"
            ) from error

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))
