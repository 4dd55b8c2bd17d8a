"""What the GRPO benchmark asks of both trainers, and the tasks as files that both read."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPTS, GENERATIONS, NUM_TASKS = 4, 8, 80
TEMPLATE_TOKENS = 16  # less than there are: the last sentence that fits leaves a gap

TOOL_ANSWERS = (
    "The calculator has read your expression and found no error in it, so the result is as you wrote it. Now look at "
    "the question once more and explain the sum in your own words.",
    "The calculator agrees with that way of adding the two numbers and has nothing more to say about it. Please write "
    "the final answer now, as one number at the end.",
)
TOWN = (
    "The town lies between two hills, and a small river runs past the old mill on its way to the sea.",
    "On market days the farmers bring apples, cheese and bread, and the square is full before the sun is high.",
    "Most of the houses are built of grey stone, with red roofs and narrow windows that look out to the south.",
    "A road leads from the church to the harbour, where fishing boats wait for the evening tide.",
    "In winter the wind is strong, and people stay at home by the fire and tell each other long stories.",
    "The school stands beside the library, and the children walk there along the river every morning.",
    "Travellers often stop at the inn, which is known for its soup and for the songs of its keeper.",
    "Nobody remembers who planted the great oak, but everyone in the town has sat in its shade.",
)


@dataclass(frozen=True)
class Case:
    """`rewards`: the case's name of each process of ours -> its reward. `weight`: share of the time.
    `num_steps`: for how many there are tasks in order; `largest`: term of the sums. `letters`: in place of sums, the
    tasks name a letter to be repeated."""

    name: str
    weight: float
    rewards: Mapping[str, str]
    goals: Mapping[str, float]
    prompt_tokens: int = 0
    max_tokens: int = 64
    turns: int = 1
    lora: bool = True
    learning_rate: float = 1e-4
    trl_steps: int = 3
    trl_micro_batch: int = 8
    num_steps: int = 30
    largest: int = 59
    model: str = "smollm2-135m-instruct"
    prompts: int = PROMPTS
    generations: int = GENERATIONS
    letters: bool = False


CASES = (
    Case("short", 8, {"short": "numeric", "short_equal": "spread"}, {"short": 6}, trl_steps=5),
    Case("short_full", 5, {"short_full": "numeric"}, {"short_full": 4}, lora=False, learning_rate=1e-5),
    Case("tools", 8, {"tools": "numeric"}, {"tools": 8}, max_tokens=32, turns=3),
    # 4 rows of 576 tokens are as much work for a product as 18 short ones, in half the memory of 8.
    Case("long", 12, {"long": "numeric"}, {"long": 10}, prompt_tokens=512, trl_micro_batch=4),
)


def write_tasks(case: Case, path: Path, tokenizer: Path, *, warm_up: Collection[int]) -> None:
    """Prompts of the tasks in `warm_up` are short in every case: that step is measured by nobody."""
    if case.letters:
        path.write_text(
            "".join(json.dumps(letter_task(number)) + "\n" for number in range(NUM_TASKS)), encoding="utf-8"
        )
        return
    chooser = random.Random(0)
    terms = range(1, case.largest + 1)
    sums = chooser.sample([(a, b) for a in terms for b in terms], NUM_TASKS)
    with path.open("w", encoding="utf-8") as file:
        for number, (a, b) in enumerate(sums):
            question = (
                f"State the final answer to the following arithmetic problem, as one number at the end: {a} + {b} ="
            )
            if case.prompt_tokens and number not in warm_up:
                question = padded(question, case.prompt_tokens, tokenizer, start=number)
            row: dict[str, Any] = {"messages": [{"role": "user", "content": question}], "answer": str(a + b)}
            if case.turns > 1:
                row["user_turns"] = list(TOOL_ANSWERS[: case.turns - 1])
            file.write(json.dumps(row) + "\n")


def letter_task(number: int) -> dict[str, Any]:
    """No two tasks are alike: ours would take them for one, and draw others than TRL."""
    letter = "abcdefgh"[number % 8]
    return {"messages": [{"role": "user", "content": f"{letter}{number:02d}"}], "answer": letter}


def padded(question: str, tokens: int, tokenizer: Path, *, start: int) -> str:
    """The question behind as much of a description as makes a prompt of about `tokens`, template included. Prompts
    begin with different sentences, so that they share no prefix."""
    from tokenizers import Tokenizer

    counter = Tokenizer.from_file(str(tokenizer))
    text = ""
    for number in range(start, start + 1000):
        longer = text + TOWN[number % len(TOWN)] + " "
        if len(counter.encode(longer + question).ids) + TEMPLATE_TOKENS > tokens:
            break
        text = longer
    return text + question
