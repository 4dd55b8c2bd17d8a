"""Tools by name. A tool is a plain or async function with annotated arguments that answers with text."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError, validate_call

from chatgrpo.errors import InvalidRequest

ToolFunction = Callable[..., Any]
_tools: dict[str, Tool] = {}


class ToolError(Exception):
    """A call that cannot be answered; its text is what the policy reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """`parameters` is the JSON schema of the arguments."""

    name: str
    description: str
    function: ToolFunction
    parameters: Mapping[str, Any]

    def signature(self) -> str:
        """What the policy is told, as JSON: name, description, parameters."""
        shown = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return json.dumps(shown, ensure_ascii=False)

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Raises ToolError when arguments are missing, unknown or of the wrong type, or when the tool raises."""
        try:
            result = self.function(**arguments)
            if inspect.isawaitable(result):
                result = asyncio.run(_await(result))
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors())
            raise ToolError(f"{self.name}: {problems}") from error
        except Exception as error:
            # Foreign code: the policy is told what went wrong, the episode goes on.
            raise ToolError(f"{self.name}: {error or type(error).__name__}") from error
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


def tool(name: str, description: str) -> Callable[[ToolFunction], ToolFunction]:
    """Registers the decorated function; its annotations say what the policy may send, and are enforced."""

    def register(function: ToolFunction) -> ToolFunction:
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(function)  # type: ignore[arg-type]  # pydantic takes functions too
            schema: dict[str, Any] = adapter.json_schema()
        except PydanticUserError as error:
            raise InvalidRequest(
                f"tool {name}: its arguments have no JSON form: {error}", "environment.tools"
            ) from error
        parameters: dict[str, Any] = {
            key: schema[key] for key in ("type", "properties", "required", "$defs") if key in schema
        }
        _tools[name] = Tool(name=name, description=description, function=validate_call(function), parameters=parameters)
        return function

    return register


def find_tool(name: str) -> Tool:
    """Raises InvalidRequest with close matches for an unknown name."""
    import chatgrpo.environments.calculator  # noqa: F401 - registers itself

    if name in _tools:
        return _tools[name]
    near = get_close_matches(name, list(_tools), n=3)
    raise InvalidRequest(
        f"no tool is registered as {name!r}; "
        + (f"did you mean {', '.join(near)}? " if near else "")
        + f"known: {', '.join(sorted(_tools))}. Name its module under `plugins` in the platform configuration",
        "environment.tools",
    )


async def _await(awaitable: Any) -> Any:
    return await awaitable
