"""How large one conversation's parts may be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from chatgrpo.errors import TooLarge
from chatgrpo.messages import Message


class Limits(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    max_message_bytes: int = Field(262_144, ge=1, description="Largest message, in bytes of UTF-8 JSON.")
    max_messages_per_append: int = Field(256, ge=1, description="Most messages in one append.")
    max_context_bytes: int = Field(65_536, ge=2, description="Largest context of a conversation, in bytes of JSON.")

    def check_messages(self, messages: Sequence[Message]) -> None:
        """Raises TooLarge naming the limit."""
        if len(messages) > self.max_messages_per_append:
            raise TooLarge(
                f"{len(messages)} messages in one append; max_messages_per_append is {self.max_messages_per_append}"
            )
        for message in messages:
            size = json_bytes(message.to_dict())
            if size > self.max_message_bytes:
                raise TooLarge(f"message of {size} bytes; max_message_bytes is {self.max_message_bytes}")

    def check_context(self, context: Mapping[str, Any]) -> None:
        """Raises TooLarge naming the limit."""
        size = json_bytes(context)
        if size > self.max_context_bytes:
            raise TooLarge(f"context of {size} bytes; max_context_bytes is {self.max_context_bytes}")


def json_bytes(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode())
