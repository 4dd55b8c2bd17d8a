"""When a reply is over, for every engine alike."""

from __future__ import annotations

from collections.abc import Sequence

from chatgrpo.errors import InvalidRequest
from chatgrpo.inference.chat_template import ChatTemplate
from chatgrpo.inference.engine import FinishReason, SamplingParams

# Stop strings are looked for in the text of this many last tokens.
_STOP_WINDOW = 32


def check_prompt(num_tokens: int, context_window: int) -> None:
    """Raises InvalidRequest for a prompt that leaves no room for a reply."""
    if not num_tokens:
        raise InvalidRequest("prompt is empty; give at least one token", "prompt")
    if num_tokens >= context_window:
        raise InvalidRequest(
            f"prompt of {num_tokens} tokens leaves no room in the context window of {context_window}", "prompt"
        )


def finish_reason(
    generated: Sequence[int], params: SamplingParams, template: ChatTemplate, *, num_prompt_tokens: int, window: int
) -> FinishReason | None:
    """Of a reply of which `generated` is sampled; None while it goes on. `window`: the context window in tokens."""
    if generated[-1] in template.eos_ids and not params.ignore_eos:
        return FinishReason.STOP
    if params.stop:
        text = template.decode(generated[-_STOP_WINDOW:])
        if any(s in text for s in params.stop):
            return FinishReason.STOP
    if len(generated) >= params.max_tokens or num_prompt_tokens + len(generated) >= window:
        return FinishReason.LENGTH
    return None
