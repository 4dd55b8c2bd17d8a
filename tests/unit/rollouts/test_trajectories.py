"""Trajectories read back exactly, filtered, and each step once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chatgrpo.environments.base import Task
from chatgrpo.messages import assistant, tool, user
from chatgrpo.rollouts import trajectories
from chatgrpo.rollouts.episode import Episode, Group, Turn
from chatgrpo.rollouts.trajectories import append_groups, read_groups, read_trajectories


def group(name: str, *rewards: float | None) -> Group:
    episode = Episode(
        token_ids=(5, 6, 7),
        completion_mask=(False, True, True),
        logprobs=(0.0, -0.1234567890123456789, -1e-17),
        prompt_length=1,
        turns=(Turn(start=1, end=3, finish_reason="stop", weight_version=4),),
        messages=(user("2 + 2 = ?"), tool("4", name="calculator"), assistant("vier ½")),
        truncated=False,
        breakdown={"numeric": 1.0, "judge": None},
        info={"attempt": 0},
    )
    task = Task(task_id=name, messages=(user("2 + 2 = ?"),), answer="4", metadata={"level": 1})
    return Group(group_id=f"g-{name}", task=task, episodes=tuple(replace(episode, reward=r) for r in rewards))


def test_groups_read_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "run" / "trajectories.jsonl"
    groups = [group("a", 0.0, 1.0), group("b", None, 0.1 + 0.2)]
    append_groups(path, groups, step=7)
    assert read_groups(path, step=7) == groups


def test_filters_by_step_and_reward(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    append_groups(path, [group("a", 0.0, 0.5, None), group("b", 1.0)], step=1)
    append_groups(path, [group("c", 0.75)], step=10)

    def found(**bounds: Any) -> list[tuple[int, str, float | None]]:
        return [(t.step, t.task.task_id, t.episode.reward) for t in read_trajectories(path, **bounds)]

    assert found() == [(1, "a", 0.0), (1, "a", 0.5), (1, "a", None), (1, "b", 1.0), (10, "c", 0.75)]
    assert found(min_reward=0.5, max_reward=0.75) == [(1, "a", 0.5), (10, "c", 0.75)]
    assert found(step=1, min_reward=1.0) == [(1, "b", 1.0)]
    assert [t.generation for t in read_trajectories(path, step=1)] == [0, 1, 2, 0]


@pytest.mark.parametrize("tail", [10, 65536])
def test_a_resumed_run_replaces_the_steps_that_it_plays_again(
    tmp_path: Path, tail: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trajectories, "_TAIL", tail)
    path = tmp_path / "t.jsonl"
    for step in (1, 2, 3):
        append_groups(path, [group(f"old{step}", 0.0)], step=step)
    append_groups(path, [group("new2", 1.0)], step=2)
    assert [(t.step, t.task.task_id) for t in read_trajectories(path)] == [(1, "old1"), (2, "new2")]


def test_a_line_cut_off_by_a_crash_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    append_groups(path, [group("a", 0.0)], step=1)
    with path.open("a") as file:
        file.write('{"step": 2, "group')
    assert [t.step for t in read_trajectories(path)] == [1]
    append_groups(path, [group("b", 0.0)], step=2)
    assert [t.task.task_id for t in read_trajectories(path)] == ["a", "b"]


def test_a_run_without_trajectories_has_none(tmp_path: Path) -> None:
    assert list(read_trajectories(tmp_path / "missing.jsonl")) == []
