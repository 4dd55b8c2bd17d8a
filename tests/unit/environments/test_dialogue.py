"""The scripted user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chatgrpo.environments.base import Environment, Step
from chatgrpo.environments.config import DialogueConfig
from chatgrpo.environments.registry import build_source
from chatgrpo.errors import InvalidRequest
from chatgrpo.messages import user

OPENING = {"messages": [{"role": "user", "content": "I lost my key."}]}


def dialogue(path: Path, *, max_turns: int = 4, **row: Any) -> Environment:
    path.write_text(json.dumps({**OPENING, **row}) + "\n")
    source = build_source(
        DialogueConfig(paths=[str(path)], max_turns=max_turns, system_prompt="Help."), split="train", seed=0, num_eval=0
    )
    return source.environment(source.task(0))


def test_the_user_answers_by_script_until_it_is_over(tmp_path: Path) -> None:
    env = dialogue(tmp_path / "a.jsonl", user_turns=["The office one.", "Thanks."])
    assert [m.content for m in env.start()] == ["Help.", "I lost my key."]
    assert env.step("Which?") == Step(messages=(user("The office one."),))
    assert env.step("I see.") == Step(messages=(user("Thanks."),))
    assert env.step("Bye.") == Step(done=True)


def test_the_goal_ends_it_early_and_pays(tmp_path: Path) -> None:
    env = dialogue(tmp_path / "a.jsonl", user_turns=["a", "b"], goal="spare key")
    assert not env.step("Hm.").done
    assert env.step("Here is a Spare Key!") == Step(done=True, reward=1.0)


def test_a_missed_goal_pays_nothing_at_the_end(tmp_path: Path) -> None:
    env = dialogue(tmp_path / "a.jsonl", user_turns=["a", "b", "c"], goal="spare key", max_turns=2)
    assert not env.step("Hm.").done
    assert env.step("Hm.") == Step(done=True, reward=0.0)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({}, "`user_turns` must be a list of texts, got NoneType"),
        ({"user_turns": ["a", 1]}, "`user_turns` must be a list of texts"),
        ({"user_turns": [], "goal": ""}, "`goal` must be a text that is not empty"),
        ({"user_turns": [], "messages": None}, "expected text or a list of messages"),
    ],
)
def test_a_row_that_is_no_dialogue_is_named(row: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=what) as caught:
        dialogue(tmp_path / "a.jsonl", **row)
    assert "a.jsonl:1: " in caught.value.message
