"""One try at one episode, as a plain record: ids, mask and messages grow turn by turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from chatgrpo.environments.base import Environment, Step
from chatgrpo.inference.engine import FinishReason
from chatgrpo.messages import Message, assistant
from chatgrpo.rollouts.episode import Episode, Turn


@dataclass(slots=True, kw_only=True)
class Attempt:
    """Invariant: `token_ids`, `mask` and `logprobs` have one length; sampled ids enter as they came from the engine."""

    group_index: int
    generation: int
    number: int
    environment: Environment | None = None
    token_ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    prompt_length: int = 0
    turn_start: int = 0
    weight_version: int = 0
    swaps: list[tuple[int, int]] = field(default_factory=list)
    request_id: str | None = None  # of the newest reply
    truncated: bool = False
    reward: float | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def open(self, messages: Sequence[Message], prompt_ids: Sequence[int]) -> None:
        self.messages = list(messages)
        self._extend(prompt_ids)
        self.prompt_length = len(prompt_ids)

    def begin_reply(self, weight_version: int) -> None:
        self.turn_start, self.weight_version, self.swaps = len(self.token_ids), weight_version, []

    def sampled(self, token_id: int, logprob: float, weight_version: int) -> None:
        if len(self.token_ids) == self.turn_start:
            self.weight_version = weight_version  # it may have waited while the weights changed
        elif weight_version != (self.swaps[-1][1] if self.swaps else self.weight_version):
            self.swaps.append((len(self.token_ids), weight_version))
        self.token_ids.append(token_id)
        self.mask.append(True)
        self.logprobs.append(logprob)

    def end_reply(self, text: str, reason: FinishReason) -> None:
        self.turns.append(
            Turn(
                start=self.turn_start,
                end=len(self.token_ids),
                finish_reason=str(reason),
                weight_version=self.weight_version,
                swaps=tuple(self.swaps),
            )
        )
        self.messages.append(assistant(text))
        self.truncated = reason is FinishReason.LENGTH

    @property
    def reply_ids(self) -> list[int]:
        return self.token_ids[self.turn_start :]

    def hear(self, step: Step) -> None:
        """The world's answer, as messages; its tokens follow by `go_on` if there is another turn.

        `info["truncated"]` is the environment's way to say that it ended the episode before the policy did."""
        self.messages.extend(step.messages)
        if step.reward is not None:
            self.reward = (self.reward or 0.0) + float(step.reward)
        self.info.update(step.info)
        self.truncated = self.truncated or bool(step.info.get("truncated"))

    def go_on(self, delta_ids: Sequence[int]) -> None:
        self._extend(delta_ids)

    def _extend(self, ids: Sequence[int]) -> None:
        self.token_ids.extend(ids)
        self.mask.extend([False] * len(ids))
        self.logprobs.extend([0.0] * len(ids))

    def episode(self) -> Episode:
        """Not yet judged. The environment's own pay is `info["environment_reward"]`."""
        return Episode(
            token_ids=tuple(self.token_ids),
            completion_mask=tuple(self.mask),
            logprobs=tuple(self.logprobs),
            prompt_length=self.prompt_length,
            turns=tuple(self.turns),
            messages=tuple(self.messages),
            truncated=self.truncated,
            info={**self.info, "environment_reward": self.reward, "attempt": self.number},
        )
