"""Multi-turn tasks with tools: the policy may call, reads what came back, and answers when it is ready.

A call is written in the reply the way Hermes and Qwen models do, several in one reply if wanted:

    <tool_call>{"name": "calculator", "arguments": {"expression": "17 * 3"}}</tool_call>

A reply without a call is the answer and ends the episode. A call that is malformed, unknown, late or failing is
answered by a tool message that says so: the policy can learn from it, the episode never breaks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from chatgrpo.environments.base import Environment, Step, Task, TaskSource
from chatgrpo.environments.config import ToolsConfig
from chatgrpo.environments.toolbox import Tool, ToolError, find_tool
from chatgrpo.messages import Message, Role, system, tool
from chatgrpo.resilience.deadline_pool import DeadlinePool

# An opening tag without its closing one is a call that went wrong, not an answer.
_CALL = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)

_INSTRUCTIONS = """You may call tools. To call one, write
<tool_call>{{"name": "...", "arguments": {{...}}}}</tool_call>
and wait for its result. Write your answer without a call when you are ready. The tools are:
{tools}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What one <tool_call> says; `problem` is set instead when it cannot be understood."""

    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def parse_calls(reply: str) -> list[Call]:
    """The calls of a reply in order; empty when it has none."""
    return [_parse(match[1], closed=bool(match[2])) for match in _CALL.finditer(reply)]


def _parse(text: str, *, closed: bool) -> Call:
    if not closed:
        return Call(problem="</tool_call> is missing")
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        return Call(problem=f"the call is not valid JSON: {error}")
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        return Call(problem='a call looks like {"name": "...", "arguments": {...}}')
    arguments = data.get("arguments", {})
    if not isinstance(arguments, dict):
        return Call(problem=f"arguments must be an object, got {type(arguments).__name__}")
    return Call(name=data["name"], arguments=arguments)


class ToolSource:
    """The tasks of another source, played with tools."""

    def __init__(self, tasks: TaskSource, config: ToolsConfig) -> None:
        self._tasks, self._config = tasks, config
        self._tools = {name: find_tool(name) for name in config.tools}
        self._pool = DeadlinePool(max_threads=64, name="tool")

    def __len__(self) -> int:
        return len(self._tasks)

    def task(self, index: int) -> Task:
        return self._tasks.task(index)

    def environment(self, task: Task) -> Environment:
        return ToolUse(task, self._tools, self._config, self._pool)


class ToolUse:
    """One episode. A call on the last turn goes unanswered and ends the episode as truncated."""

    def __init__(self, task: Task, tools: Mapping[str, Tool], config: ToolsConfig, pool: DeadlinePool) -> None:
        self._task, self._tools, self._config, self._pool = task, tools, config, pool
        self._num_replies = 0
        self._num_calls = 0
        self._num_errors = 0

    def start(self) -> Sequence[Message]:
        first, *rest = self._task.messages
        instructions = _INSTRUCTIONS.format(tools="\n".join(t.signature() for t in self._tools.values()))
        if first.role is Role.SYSTEM:
            return (system(f"{first.content}\n\n{instructions}"), *rest)
        return (system(instructions), first, *rest)

    def step(self, reply: str) -> Step:
        self._num_replies += 1
        calls = parse_calls(reply)
        if not calls:
            return Step(done=True, info=self._info())
        if self._num_replies >= self._config.max_turns:
            return Step(done=True, info={**self._info(), "truncated": True})
        # All are under way before the first is waited for, so a reply never takes longer than its slowest tool.
        running = [(call, self._begin(call)) for call in calls]
        return Step(messages=tuple(self._answer(call, begun) for call, begun in running), info=self._info())

    def _begin(self, call: Call) -> Future[str] | ToolError:
        if call.problem:
            return ToolError(call.problem)
        chosen = self._tools.get(call.name)
        if chosen is None:
            return ToolError(f"no tool is called {call.name!r}; there are {', '.join(self._tools)}")
        return self._pool.submit(partial(chosen.call, call.arguments), timeout_s=self._config.tool_timeout_s)

    def _answer(self, call: Call, begun: Future[str] | ToolError) -> Message:
        self._num_calls += 1
        try:
            if isinstance(begun, ToolError):
                raise begun
            return tool(begun.result(), name=call.name)
        except (ToolError, TimeoutError) as error:
            self._num_errors += 1
            return tool(f"error: {error}", name=call.name or None)

    def _info(self) -> dict[str, Any]:
        return {"tool_calls": self._num_calls, "tool_errors": self._num_errors}
