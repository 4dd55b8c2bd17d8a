"""One chat message, the noun that travels from HTTP to environment to chat template and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """`name` is the tool's name on a tool message; `tool_calls` follow OpenAI's shape on an assistant message."""

    role: Role
    content: str
    name: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """The OpenAI wire shape; absent fields are left out, as chat templates expect."""
        out: dict[str, Any] = {"role": str(self.role), "content": self.content}
        if self.name is not None:
            out["name"] = self.name
        if self.tool_calls:
            out["tool_calls"] = [dict(call) for call in self.tool_calls]
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Message:
        """Raises ValueError naming the field when `role` or `content` is missing or of the wrong type."""
        role, content = data.get("role"), data.get("content")
        if role not in {r.value for r in Role}:
            raise ValueError(f"role: {role!r} is not one of {', '.join(Role)}")
        if not isinstance(content, str):
            raise ValueError(f"content: expected text, got {type(content).__name__}")
        return cls(
            role=Role(role), content=content, name=data.get("name"), tool_calls=tuple(data.get("tool_calls") or ())
        )


def system(content: str) -> Message:
    return Message(role=Role.SYSTEM, content=content)


def user(content: str) -> Message:
    return Message(role=Role.USER, content=content)


def assistant(content: str) -> Message:
    return Message(role=Role.ASSISTANT, content=content)


def tool(content: str, name: str | None = None) -> Message:
    return Message(role=Role.TOOL, content=content, name=name)
