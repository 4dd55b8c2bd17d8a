"""Single-turn tasks from files.

A row has `prompt` (text or a list of messages) or `messages`, and perhaps `answer`; all other columns are kept as
metadata for rewards. Messages that end with the assistant's turn, as conversations do, are asked again: that turn is
left out of the prompt and kept as metadata `reference`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar, TypeVar

from chatgrpo.environments.base import Environment, SingleTurn, Task
from chatgrpo.environments.config import DatasetConfig, DialogueConfig, PromptsConfig
from chatgrpo.environments.files import Row, read_rows
from chatgrpo.messages import Message, Role, system, user

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DatasetSource:
    inline: ClassVar[bool] = True
    tasks: Sequence[Task]

    def __len__(self) -> int:
        return len(self.tasks)

    def task(self, index: int) -> Task:
        return self.tasks[index]

    def environment(self, task: Task) -> Environment:
        return SingleTurn(task)


def dataset_source(config: DatasetConfig, *, split: str, num_eval: int) -> DatasetSource:
    """Raises InvalidRequest with file and line for a row that is no task."""
    return DatasetSource(split_tasks(config, task_of_row, split=split, num_eval=num_eval))


def prompts_source(config: PromptsConfig, *, split: str, num_eval: int) -> DatasetSource:
    """The prompts of a request, as if they were the lines of a file."""
    rows = (Row(where=f"prompt {n}", values={"prompt": text}) for n, text in enumerate(config.prompts, start=1))
    tasks = _distinct(task_of_row(row, config.system_prompt) for row in rows)
    held_out = _held_out(tasks, config.eval_fraction) if num_eval else set()
    return DatasetSource(_side(tasks, tasks, held_out, split=split, num_eval=num_eval))


def split_tasks(
    config: DatasetConfig | DialogueConfig, make: Callable[[Row, str | None], Task], *, split: str, num_eval: int
) -> tuple[Task, ...]:
    """One side of the hold-out: at most `num_eval` tasks for "eval", everything not held out for "train".

    A question's side follows from its text alone, so equal questions never part and growing files move none of them.
    With `eval_paths`, what occurs there is taken out of training."""
    tasks = _distinct(make(row, config.system_prompt) for row in read_rows(config.paths))
    if num_eval == 0:
        return () if split == "eval" else tuple(tasks)
    if config.eval_paths:
        held_out = _distinct(make(row, config.system_prompt) for row in read_rows(config.eval_paths, split="test"))
        questions = {_question(task) for task in held_out}
    else:
        questions = _held_out(tasks, config.eval_fraction)
        held_out = tasks
    return _side(tasks, held_out, questions, split=split, num_eval=num_eval)


def _side(
    tasks: Sequence[Task], candidates: Sequence[Task], questions: set[str], *, split: str, num_eval: int
) -> tuple[Task, ...]:
    """Of `tasks` what is trained on, or of `candidates` what is held out, when `questions` are held out."""
    if split == "train":
        return tuple(task for task in tasks if _question(task) not in questions)
    held_out = [task for task in candidates if _question(task) in questions]
    return tuple(sorted(held_out, key=lambda task: _position(_question(task)))[:num_eval])


def task_of_row(row: Row, system_prompt: str | None) -> Task:
    values = dict(row.values)
    # Tables have every column in every row; absent values come as null.
    messages, prompt = values.pop("messages", None), values.pop("prompt", None)
    if (messages is None) == (prompt is None):
        raise row.broken("expected one of `prompt` and `messages`, got " + ("neither" if prompt is None else "both"))
    opening = opening_messages(row, prompt if messages is None else messages, system_prompt)
    if opening[-1].role is Role.ASSISTANT:
        values["reference"] = opening[-1].content
        opening = opening[:-1]
    if not any(m.role is Role.USER for m in opening):
        raise row.broken("`messages` needs a message with role user")
    answer = answer_of(row, values.pop("answer", None))
    return Task(task_id=task_id(opening, answer), messages=opening, answer=answer, metadata=values)


def opening_messages(row: Row, value: Any, system_prompt: str | None) -> tuple[Message, ...]:
    if isinstance(value, str):
        value = [user(value).to_dict()]
    if not isinstance(value, list) or not value:
        raise row.broken(f"expected text or a list of messages, got {type(value).__name__} {str(value)[:60]!r}")
    messages = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict):
            raise row.broken(
                f"message {number}: expected an object with role and content, got {type(message).__name__}"
            )
        try:
            messages.append(Message.from_dict(message))
        except ValueError as error:
            raise row.broken(f"message {number}: {error}") from error
    if system_prompt is not None and messages[0].role is not Role.SYSTEM:
        messages.insert(0, system(system_prompt))
    return tuple(messages)


def answer_of(row: Row, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise row.broken(f"`answer` must be text or a number, got {type(value).__name__} {str(value)[:60]!r}")
    return str(int(value)) if float(value).is_integer() else repr(value)


def task_id(messages: Sequence[Message], answer: str | None) -> str:
    content = json.dumps([[m.to_dict() for m in messages], answer], sort_keys=True, default=str)
    return blake2b(content.encode(), digest_size=8).hexdigest()


def _distinct(tasks: Any) -> list[Task]:
    return list({task.task_id: task for task in tasks}.values())


def _question(task: Task) -> str:
    """What the policy reads, less the system prompt: the same question under another system prompt is the same."""
    return json.dumps([m.to_dict() for m in task.messages if m.role is not Role.SYSTEM], sort_keys=True, default=str)


def _position(question: str) -> float:
    """A fixed point in [0, 1) for each text, evenly spread."""
    return int.from_bytes(blake2b(question.encode(), digest_size=8).digest(), "big") / 2**64


def _held_out(tasks: Sequence[Task], fraction: float) -> set[str]:
    """At least one question, if any may be held out, and never all of them."""
    questions = sorted({_question(task) for task in tasks}, key=_position)
    chosen = {q for q in questions if _position(q) < fraction}
    if not chosen and fraction > 0:
        chosen = set(questions[:1])
    return chosen if len(chosen) < len(questions) else chosen - {questions[-1]}
