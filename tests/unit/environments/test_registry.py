"""Environments by name, the toy that needs its tool, and plug-ins."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatgrpo.environments.base import TaskSource
from chatgrpo.environments.config import PluginEnvironmentConfig
from chatgrpo.environments.registry import build_source
from chatgrpo.errors import InvalidRequest
from chatgrpo.messages import tool
from chatgrpo.plugins import load_plugins

TOY = PluginEnvironmentConfig(name="toy_tool")


def toy(split: str = "train", **params: object) -> TaskSource:
    return build_source(PluginEnvironmentConfig(name="toy_tool", params=params), split=split, seed=0, num_eval=50)  # type: ignore[arg-type]


def test_toy_pays_by_share_of_slots() -> None:
    source = toy()
    task = next(t for t in map(source.task, range(len(source))) if t.answer == "b")
    env = source.environment(task)
    step = env.step("ccccaaaa")
    assert (step.reward, step.done) == (0.25, False)
    assert step.messages == (tool("b" * 8, name="lookup"),)
    end = env.step("bbbbbbba" + "bbb")
    assert (end.reward, end.done) == (0.4375, True)


def test_toy_tells_nothing_unless_its_tool_is_called() -> None:
    source = toy()
    env = source.environment(source.task(0))
    step = env.step("aaaaaaaaccc")  # the call comes after the last slot
    assert step.messages == (tool("-" * 8, name="lookup"),)
    assert step.reward == 0


def test_toy_splits_its_keys() -> None:
    train, held_out = toy("train"), toy("eval")
    keys = [{s.task(i).task_id for i in range(len(s))} for s in (train, held_out)]
    assert (len(keys[0]), len(keys[1])) == (626, 50)
    assert not keys[0] & keys[1]
    letters = [held_out.task(i).answer for i in range(50)]
    assert 10 < letters.count("a") < 40


@pytest.mark.parametrize("params", [{"call": "a"}, {"slots": 0}, {"letters": ""}, {"unknown": 1}])
def test_impossible_toys_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        toy(**params)
    assert caught.value.field == "environment.params"


def test_unknown_environment_lists_the_known() -> None:
    with pytest.raises(InvalidRequest, match=r"'toy_tol'; did you mean toy_tool\?"):
        build_source(PluginEnvironmentConfig(name="toy_tol"), split="train", seed=0, num_eval=0)


def test_a_plug_in_file_brings_an_environment_a_reward_and_a_tool(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        """
from chatgrpo.environments.base import SingleTurn, Task
from chatgrpo.environments.registry import task_source
from chatgrpo.messages import user
from chatgrpo.rewards.registry import reward

class Source:
    def __init__(self, words): self.words = words
    def __len__(self): return len(self.words)
    def task(self, i): return Task(task_id=self.words[i], messages=(user(self.words[i]),))
    def environment(self, task): return SingleTurn(task)

@task_source("test_registry_words")
def words(*, split, seed, num_eval, first="a"):
    return Source([first, "b"] if split == "train" else ["c"])

@reward("test_registry_short")
def short(task, episode): return 1.0 / (1 + len(episode.reply))
"""
    )
    load_plugins([str(path)])
    load_plugins([str(path)])  # once a process
    config = PluginEnvironmentConfig(name="test_registry_words", params={"first": "x"})
    source = build_source(config, split="train", seed=0, num_eval=0)
    assert [source.task(i).task_id for i in range(len(source))] == ["x", "b"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\ndef f(:\n", "line 2: invalid syntax"),
        ("import os\nos.nothing\n", "line 2: AttributeError"),
        ("1/0", "line 1: ZeroDivisionError"),
    ],
)
def test_a_plug_in_that_cannot_be_imported_is_named_with_line_and_reason(
    text: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    for _ in range(2):  # a failed import is not taken for a loaded one
        with pytest.raises(InvalidRequest) as caught:
            load_plugins([str(path)])
        assert caught.value.message.startswith(f"plug-in {path} cannot be imported: {reason}")


def test_missing_plug_ins_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no such file"):
        load_plugins([str(tmp_path / "none.py")])
    with pytest.raises(InvalidRequest, match="plug-in no_such_module_here cannot be imported: ModuleNotFoundError"):
        load_plugins(["no_such_module_here"])
