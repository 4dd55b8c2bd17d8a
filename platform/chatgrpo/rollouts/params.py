"""What a rollout needs to know; the names are those of the training configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import Protocol, Self

from chatgrpo.messages import Message


class Tokens(Protocol):
    """Messages to token ids and back; a sampled reply is never tokenised again."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The opening messages, up to and including the generation prompt."""
        ...

    def continuation_ids(self, new_messages: Sequence[Message], *, closed: bool) -> list[int]:
        """What follows a sampled reply, up to and including the next generation prompt. `closed`: the reply ended
        with the end-of-turn token."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """A reply's text without special tokens."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutParams:
    """See the fields of the same names in `chatgrpo.training.config.TrainConfig`. `temperature` 0 is greedy."""

    num_generations: int = 8
    max_prompt_length: int = 512
    max_completion_length: int = 256
    max_episode_length: int = 2048
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    rollout_batch_size: int = 64
    environment_timeout_s: float = 60.0
    max_episode_retries: int = 1

    @classmethod
    def from_config(cls, config: object) -> Self:
        """Takes the fields of the same names from any configuration object."""
        values = {field.name: getattr(config, field.name) for field in fields(cls)}
        return cls(**{**values, "stop": tuple(values["stop"])})


def sampling_seed(seed: int, group_id: str, *, generation: int, attempt: int, turn: int) -> int:
    """63 bits that depend on what is sampled and not on where or beside what, so that a rerun is equal bit for bit."""
    key = f"{seed}/{group_id}/{generation}/{attempt}/{turn}".encode()
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big") >> 1
