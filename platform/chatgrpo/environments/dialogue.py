"""Multi-turn dialogue with a scripted user.

    {"messages": [{"role": "user", "content": "I lost my key."}],
     "user_turns": ["It is the one for the office.", "Thanks."], "goal": "spare key"}

Each reply is answered by the next of `user_turns`. The dialogue ends when a reply contains `goal` (any case), when the
script is over, or after `max_turns` replies. With a `goal` the environment pays 1 for reaching it and 0 at the end for
not reaching it; without one it pays nothing and the rubric judges alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from chatgrpo.environments.base import Environment, Step, Task
from chatgrpo.environments.config import DialogueConfig
from chatgrpo.environments.dataset import answer_of, opening_messages, split_tasks, task_id
from chatgrpo.environments.files import Row
from chatgrpo.messages import Message, Role, user


@dataclass(frozen=True, slots=True)
class DialogueSource:
    inline: ClassVar[bool] = True
    tasks: Sequence[Task]
    max_turns: int

    def __len__(self) -> int:
        return len(self.tasks)

    def task(self, index: int) -> Task:
        return self.tasks[index]

    def environment(self, task: Task) -> Environment:
        return Dialogue(task, self.max_turns)


@dataclass(slots=True)
class Dialogue:
    task: Task
    max_turns: int
    _num_replies: int = field(default=0)

    def start(self) -> Sequence[Message]:
        return self.task.messages

    def step(self, reply: str) -> Step:
        goal: str | None = self.task.metadata["goal"]
        script: Sequence[str] = self.task.metadata["user_turns"]
        self._num_replies += 1
        if goal is not None and goal.casefold() in reply.casefold():
            return Step(done=True, reward=1.0)
        if self._num_replies >= self.max_turns or self._num_replies > len(script):
            return Step(done=True, reward=None if goal is None else 0.0)
        return Step(messages=(user(script[self._num_replies - 1]),))


def dialogue_source(config: DialogueConfig, *, split: str, num_eval: int) -> DialogueSource:
    """Raises InvalidRequest with file and line for a row that is no dialogue."""
    return DialogueSource(split_tasks(config, _task, split=split, num_eval=num_eval), config.max_turns)


def _task(row: Row, system_prompt: str | None) -> Task:
    values = dict(row.values)
    opening = opening_messages(row, values.pop("messages", None), system_prompt)
    if opening[-1].role is Role.ASSISTANT:
        raise row.broken("`messages` must end before the assistant's turn; later turns of the user go in `user_turns`")
    turns = values.get("user_turns")
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        raise row.broken(f"`user_turns` must be a list of texts, got {type(turns).__name__} {str(turns)[:60]!r}")
    goal = values.setdefault("goal", None)
    if goal is not None and not (isinstance(goal, str) and goal.strip()):
        raise row.broken(f"`goal` must be a text that is not empty, got {goal!r}")
    answer = answer_of(row, values.pop("answer", None))
    script = [user(turn) for turn in turns]
    return Task(task_id=task_id((*opening, *script), answer), messages=opening, answer=answer, metadata=values)
