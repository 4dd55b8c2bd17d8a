"""From sampled token ids to pieces of text that can be sent while the reply is still being written.

A piece never ends in half a UTF-8 character and never shows a stop string or the beginning of one:

    text = TextStream(template.decode, stop=("END",))
    text.push([72, 105])    # "Hi"
    text.finish()           # whatever was held back
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chatgrpo.inference.engine import FinishReason

# What a decoder writes for bytes that are not (yet) a character.
_INCOMPLETE = "\ufffd"
# A character has at most four bytes, so at most four byte-level tokens; text that stays incomplete for longer is
# truly broken and is shown as it is.
_MAX_HELD_TOKENS = 4


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One sampled token as text (a part of a character is a replacement character) and its log-probability, see
    `TokenEvent`."""

    text: str
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatDelta:
    """One piece of a reply. `num_tokens` counts the sampled tokens behind it, the end-of-turn token included;
    `finish_reason` is set on the last piece only. `model_version` names the weights that wrote it, `num_prompt_tokens`
    is the length of the prompt they were given. `logprobs`, when they were asked for: of the tokens behind the piece,
    those of a stop text included, the end-of-turn token not."""

    text: str
    num_tokens: int
    finish_reason: FinishReason | None
    model_version: str
    num_prompt_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()


class TextStream:
    """The text of one reply, as it grows. `decode` turns ids into text, special tokens left out."""

    def __init__(self, decode: Callable[[Sequence[int]], str], *, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        # Ids before `_start` are settled; later ones are decoded again with each new one, because some tokenizers write
        # a token differently at the beginning of a text (leading spaces). `_num_out` characters of them are out.
        self._start = 0
        self._whole_until = 0
        self._num_out = 0
        self._num_held_tokens = 0
        self._held = ""
        self.stopped = False

    def push(self, ids: Sequence[int]) -> str:
        """The text that has become certain. Sets `stopped` once a stop string has appeared; later ids add nothing."""
        if self.stopped:
            return ""
        new = "".join(self._one(token_id) for token_id in ids)
        return self._release(self._held + new, final=False)

    def finish(self) -> str:
        """What was held back: the beginning of a stop string that did not come, or bytes that made no character."""
        if self.stopped:
            return ""
        rest = self._decode(self._ids[self._start :])[self._num_out :]
        return self._release(self._held + rest, final=True)

    def _one(self, token_id: int) -> str:
        """The characters that are whole now."""
        self._ids.append(token_id)
        text = self._decode(self._ids[self._start :])
        whole = text.rstrip(_INCOMPLETE)
        if len(whole) < len(text) and self._num_held_tokens >= _MAX_HELD_TOKENS - 1:
            whole = text
        out = whole[self._num_out :]
        self._num_held_tokens = 0 if out or len(whole) == len(text) else self._num_held_tokens + 1
        self._num_out = max(self._num_out, len(whole))
        if len(whole) == len(text):
            # Everything before this token is settled; the token itself stays as the context of the next one.
            self._start, self._whole_until = self._whole_until, len(self._ids)
            self._num_out = len(self._decode(self._ids[self._start :]))
        return out

    def _release(self, text: str, *, final: bool) -> str:
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if final else max((overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
