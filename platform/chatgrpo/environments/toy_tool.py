"""A toy that needs its tool, small enough for a random-initialised model to learn in a minute.

    user       kx            a key; the policy cannot know what it stands for
    assistant  cccccccc      calls the tool by writing `call`; half the reward is the share of slots that call
    tool       bbbbbbbb      the letter behind the key once per slot, or "-" when the tool was not called
    assistant  bbbbbbbb      the other half is the share of slots that repeat the letter

The reward is a share of slots, so a random policy already earns some of it and every step towards the goal pays. The
tool repeats itself because a lone letter drowns among the template's tokens. Measured with the tiny model (8 tasks x 32
episodes, held out, greedy): with the letter said once it stays at one constant letter, 0.70 after 60 steps at learning
rate 5e-4 and after 100 at 1e-3; said eight times it has 1.00 after 30 steps at 5e-4. With eight letters in place of two
it had not learned the second half after 100 steps (0.50).
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import ClassVar

from chatgrpo.environments.base import Environment, Step, Task
from chatgrpo.environments.registry import Split, task_source
from chatgrpo.errors import InvalidRequest
from chatgrpo.messages import Message, tool, user

NOT_CALLED = "-"


@dataclass(frozen=True, slots=True)
class ToyToolSource:
    """Every two-letter key is one task."""

    inline: ClassVar[bool] = True
    keys: tuple[str, ...]
    letters: str
    call: str
    slots: int

    def __len__(self) -> int:
        return len(self.keys)

    def task(self, index: int) -> Task:
        key = self.keys[index]
        letter = self.letters[_digest(key) % len(self.letters)]
        return Task(task_id=f"toy-{key}", messages=(user(key),), answer=letter)

    def environment(self, task: Task) -> Environment:
        return ToyTool(task, call=self.call, slots=self.slots)


@dataclass(slots=True)
class ToyTool:
    """One episode: one tool turn, one answer turn."""

    task: Task
    call: str
    slots: int
    _called: bool | None = field(default=None)

    def start(self) -> Sequence[Message]:
        return self.task.messages

    def step(self, reply: str) -> Step:
        if self._called is None:
            self._called = self.call in reply[: self.slots]
            answer = (str(self.task.answer) if self._called else NOT_CALLED) * self.slots
            return Step(messages=(tool(answer, name="lookup"),), reward=self._share(reply, self.call) / 2)
        return Step(done=True, reward=self._share(reply, str(self.task.answer)) / 2, info={"called": self._called})

    def _share(self, reply: str, letter: str) -> float:
        return reply[: self.slots].count(letter) / self.slots


@task_source("toy_tool")
def toy_tool_source(
    *, split: Split, seed: int, num_eval: int, letters: str = "ab", call: str = "c", slots: int = 8
) -> ToyToolSource:
    """`letters`: what a key may stand for; `call`: the character that calls the tool; `slots`: characters judged.

    The 676 keys are split by a fixed order, so both splits are the same for every seed."""
    if len(call) != 1 or call in letters or not letters or slots < 1:
        raise InvalidRequest(
            f"call={call!r} letters={letters!r} slots={slots}: `call` is one character that is not in `letters`, "
            "`letters` has at least one, `slots` is at least 1",
            "environment.params",
        )
    keys = sorted((a + b for a in string.ascii_lowercase for b in string.ascii_lowercase), key=_digest)
    if num_eval >= len(keys):
        raise InvalidRequest(f"toy_tool has {len(keys)} keys; hold out fewer than {num_eval}", "num_eval_prompts")
    chosen = keys[:num_eval] if split == "eval" else keys[num_eval:]
    return ToyToolSource(keys=tuple(chosen), letters=letters, call=call, slots=slots)


def _digest(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")
