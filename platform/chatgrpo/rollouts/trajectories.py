"""What the policy did, kept for people and for replay: one JSON line an episode, one file a rank.

A step that is written again after a resume replaces what the interrupted run had written of it, so a file never holds
a step twice. Floats survive exactly: log-probs read back equal the sampled ones bit for bit.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatgrpo.environments.base import Task
from chatgrpo.messages import Message
from chatgrpo.rollouts.episode import Episode, Group, Turn

# Bytes read at once when looking for the last line; a line with its ids is some kilobytes.
_TAIL = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One episode with its group and step. `worker`: the rollout worker that played it, "" for the learner."""

    step: int
    group_id: str
    generation: int
    task: Task
    episode: Episode
    worker: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "step": self.step,
            "group_id": self.group_id,
            "generation": self.generation,
            "worker": self.worker,
            "task": {
                "task_id": self.task.task_id,
                "messages": [m.to_dict() for m in self.task.messages],
                "answer": self.task.answer,
                "metadata": dict(self.task.metadata),
            },
            "episode": self.episode.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Trajectory:
        task = {**data["task"], "messages": tuple(Message.from_dict(m) for m in data["task"]["messages"])}
        return cls(
            step=data["step"],
            group_id=data["group_id"],
            generation=data["generation"],
            task=Task(**task),
            episode=_episode(data["episode"]),
            worker=data.get("worker", ""),
        )


def append_groups(path: str | Path, groups: Sequence[Group], *, step: int) -> None:
    """Adds the groups of one step. What an interrupted run had written for this step or later ones goes first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if _last_step(path) >= step:
        _keep_before(path, step)
    with path.open("a", encoding="utf-8") as file:
        for group in groups:
            for generation, episode in enumerate(group.episodes):
                trajectory = Trajectory(
                    step=step,
                    group_id=group.group_id,
                    generation=generation,
                    task=group.task,
                    episode=episode,
                    worker=group.worker,
                )
                # Metadata comes from data sets: what JSON has no word for (dates, arrays) is kept as text.
                file.write(json.dumps(trajectory.to_dict(), ensure_ascii=False, default=str) + "\n")


def read_trajectories(
    path: str | Path,
    *,
    step: int | None = None,
    min_reward: float | None = None,
    max_reward: float | None = None,
) -> Iterator[Trajectory]:
    """In the order written, lazily; none if there is no file. Bounds on the reward leave out episodes without one."""
    for data in _lines(Path(path)):
        if step is not None and data["step"] != step:
            continue
        if _within(data["episode"]["reward"], min_reward, max_reward):
            yield Trajectory.from_dict(data)


def read_groups(path: str | Path, *, step: int) -> list[Group]:
    """The groups of one step as they were collected: enough to replay its update."""
    groups: dict[str, list[Trajectory]] = {}
    for trajectory in read_trajectories(path, step=step):
        groups.setdefault(trajectory.group_id, []).append(trajectory)
    return [
        Group(
            group_id=group_id,
            task=members[0].task,
            episodes=tuple(t.episode for t in members),
            worker=members[0].worker,
        )
        for group_id, members in groups.items()
    ]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines: one that was cut off by the end of its process counts as not written."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def _last_step(path: Path) -> int:
    """Of the last line, -1 if there is none; a cut-off line claims to be later than all, so that it is swept."""
    if not path.exists() or path.stat().st_size == 0:
        return -1
    with path.open("rb") as file:
        start = file.seek(0, os.SEEK_END)
        tail = b""
        while start and b"\n" not in tail[:-1]:
            size = min(_TAIL, start)
            start = file.seek(start - size)
            tail = file.read(size) + tail
    if not tail.endswith(b"\n"):
        return sys.maxsize
    return int(json.loads(tail[:-1].rpartition(b"\n")[2])["step"])


def _keep_before(path: Path, step: int) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for data in _lines(path):
            if data["step"] < step:
                file.write(json.dumps(data, ensure_ascii=False) + "\n")
    os.replace(partial, path)


def _within(reward: float | None, low: float | None, high: float | None) -> bool:
    if low is None and high is None:
        return True
    return reward is not None and (low is None or reward >= low) and (high is None or reward <= high)


def _episode(data: dict[str, Any]) -> Episode:
    return Episode(
        **{
            **data,
            "token_ids": tuple(data["token_ids"]),
            "completion_mask": tuple(data["completion_mask"]),
            "logprobs": tuple(data["logprobs"]),
            "turns": tuple(_turn(turn) for turn in data["turns"]),
            "messages": tuple(Message.from_dict(message) for message in data["messages"]),
        }
    )


def _turn(data: dict[str, Any]) -> Turn:
    return Turn(**{**data, "swaps": tuple((start, version) for start, version in data.get("swaps", ()))})
