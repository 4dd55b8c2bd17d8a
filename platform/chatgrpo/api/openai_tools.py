"""Tools in OpenAI's shapes, and the calls in the text of a reply. Models whose chat template takes tools learn to write

    <tool_call>
    {"name": "add", "arguments": {"a": 1, "b": 2}}
    </tool_call>

The template shows them the tools; what they write in this form is told to the client as calls, all else as text.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from ulid import ULID

from chatgrpo.inference.deltas import overlap

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_BEGIN: Final = "<tool_call>"
_CALL: Final = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|\Z)", re.DOTALL)


class Function(BaseModel):
    model_config = _STRICT

    name: str = Field(pattern="^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, JsonValue] | None = Field(None, description="JSON schema of the arguments.")
    strict: Literal[False] | None = Field(None, description="Only false: arguments are what the model writes.")


class Tool(BaseModel):
    """Shown to the model by its chat template."""

    model_config = _STRICT

    type: Literal["function"]
    function: Function

    def to_json(self) -> str:
        return json.dumps(self.model_dump(exclude_none=True), ensure_ascii=False, sort_keys=True)


class CalledFunction(BaseModel):
    model_config = _STRICT

    name: str = Field(max_length=64)
    arguments: str = Field(description="A JSON object, as text.")


class ToolCall(BaseModel):
    """A call in an earlier reply."""

    model_config = _STRICT

    id: str = Field(max_length=128)
    type: Literal["function"]
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """Templates write the arguments as JSON themselves. Raises ValueError when they are none."""
        arguments = json.loads(self.function.arguments)
        if not isinstance(arguments, dict):
            raise ValueError(f"arguments of {self.function.name} must be a JSON object")
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


class SpokenText:
    """The text of one reply as it grows, without its calls. What may be the beginning of one is held back."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        self._held += text
        at = self._held.find(_BEGIN)
        if at < 0:
            at = len(self._held) - overlap(self._held, _BEGIN)
        out, self._held = self._held[:at], self._held[at:]
        return out

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """The rest of the text, and the calls. What looks like a call and cannot be read is text."""
        calls: list[dict[str, Any]] = []

        def take(found: re.Match[str]) -> str:
            call = _read(found[1])
            if call is None:
                return found[0]
            calls.append(call)
            return ""

        rest = _CALL.sub(take, self._held)
        self._held = ""
        return (rest.strip() if calls else rest), calls


def split_calls(text: str) -> tuple[str, list[dict[str, Any]]]:
    """The text of a whole reply without its calls, and the calls."""
    spoken = SpokenText()
    begin = spoken.push(text)
    rest, calls = spoken.finish()
    return ((begin + rest).strip() if calls else begin + rest), calls


def _read(text: str) -> dict[str, Any] | None:
    try:
        call = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None
    name, arguments = call.get("name"), call.get("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{ULID()}", "type": "function", "function": function}
