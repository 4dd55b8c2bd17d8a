"""Fakes small enough to read in the test that uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from chatgrpo.inference.engine import FinishReason, GenerationRequest, TokenEvent
from chatgrpo.messages import Message


class FakeClock:
    """Time that moves only when told to."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self.time = start

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += seconds


class ByteTokens:
    """Bytes as token ids, a role id before and END after every message. `pad == END` on purpose."""

    END = 256
    ROLES: ClassVar[Mapping[str, int]] = {"system": 257, "user": 258, "assistant": 259, "tool": 260}

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        return [*(i for m in messages for i in self._message(m)), self.ROLES["assistant"]]

    def continuation_ids(self, new_messages: Sequence[Message], *, closed: bool) -> list[int]:
        return [*([] if closed else [self.END]), *self.prompt_ids(new_messages)]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def _message(self, message: Message) -> list[int]:
        return [self.ROLES[message.role], *message.content.encode(), self.END]


class FakeEngine:
    """Speaks what `script(request)` says, a byte a step, then END; a text beyond `max_tokens` is cut.

    Log-probs are -(request's tokens so far) / 8, so that a misplaced one shows."""

    def __init__(self, script: Callable[[GenerationRequest], str]) -> None:
        self.script = script
        self.weight_version = 0
        self.requests: list[GenerationRequest] = []
        self.cancelled: list[str] = []
        self.added_before_step: list[list[str]] = [[]]
        self._left: dict[str, list[tuple[int, FinishReason | None]]] = {}
        self._said: dict[str, int] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._left)

    @property
    def running(self) -> int:
        return len(self._left)

    def add(self, request: GenerationRequest) -> None:
        text = [*self.script(request).encode(), ByteTokens.END][: request.params.max_tokens]
        last = FinishReason.STOP if text[-1] == ByteTokens.END else FinishReason.LENGTH
        self._left[request.request_id] = [(i, None) for i in text[:-1]] + [(text[-1], last)]
        self._said[request.request_id] = 0
        self.requests.append(request)
        self.added_before_step[-1].append(request.request_id)

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        self._left.pop(request_id, None)

    def step(self) -> list[TokenEvent]:
        self.added_before_step.append([])
        events = []
        for request_id in list(self._left):
            token_id, reason = self._left[request_id].pop(0)
            self._said[request_id] += 1
            events.append(TokenEvent(request_id, token_id, -self._said[request_id] / 8, reason))
            if reason is not None:
                del self._left[request_id]
        return events
