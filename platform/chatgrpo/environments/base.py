"""Where the policy practises: a task source hands out tasks, an environment plays one task once.

An environment is single-use: `start` once, then `step` until it says done. Both may be plain or `async` methods;
plain ones run in a thread pool, so they may block (a tool call, a web request) without stopping generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from chatgrpo.messages import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One thing to do. `task_id` is stable across runs (it names the question, not the visit);
    `answer` and `metadata` are for rewards and never shown to the policy."""

    task_id: str
    messages: tuple[Message, ...]
    answer: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What the world answers to one reply. `messages` are appended to the conversation (user or tool turns);
    with `done` the episode ends. `reward` is the environment's own opinion, judged beside the rubric."""

    messages: tuple[Message, ...] = ()
    done: bool = False
    reward: float | None = None
    info: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Environment(Protocol):
    def start(self) -> Sequence[Message]:
        """The opening messages."""
        ...

    def step(self, reply: str) -> Step:
        """The world's answer to the policy's reply (text without the end-of-turn token)."""
        ...


@runtime_checkable
class TaskSource(Protocol):
    """An indexable, deterministic set of tasks: `task(i)` is the same for the same configuration and seed.

    A class attribute `inline = True` says that its environments answer at once and never block."""

    def __len__(self) -> int: ...

    def task(self, index: int) -> Task:
        """Raises IndexError outside range(len(self))."""
        ...

    def environment(self, task: Task) -> Environment: ...


@dataclass(slots=True)
class SingleTurn:
    """Question, reply, done."""

    task: Task

    def start(self) -> Sequence[Message]:
        return self.task.messages

    def step(self, reply: str) -> Step:
        return Step(done=True)
