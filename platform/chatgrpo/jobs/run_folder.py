"""The folder of one run, `{home}/runs/<job id>/`: the contract between the scheduler and the process that trains.

config.yaml         written by the scheduler before each attempt: the TrainConfig to run, workers as granted
stop                written by the scheduler: "preempt", "resize" or "pause". The run looks at it after every step,
                    saves a checkpoint, writes result.json with status "stopped" and exits with status 0
metrics.jsonl       appended by the run, one line a step: {"step", "total_steps", "eta_s", "reward", ...}
trajectories-<rank>.jsonl  appended by each worker of the run, one episode a line
checkpoints/        complete checkpoints only (see checkpoints.py)
lock                held by the process that trains, for as long as it lives
result.json         written last by the run: {"status": "succeeded" | "failed" | "stopped", "error", "cause", ...}
log-<attempt>.txt   what the run printed, kept by the scheduler when the run has ended
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True, slots=True)
class RunFolder:
    path: Path

    @classmethod
    def of(cls, runs_dir: Path, job_id: str) -> RunFolder:
        return cls(runs_dir / job_id)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def stop(self) -> Path:
        return self.path / "stop"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def trajectories(self, rank: int) -> Path:
        return self.path / f"trajectories-{rank}.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    def log(self, attempt: int) -> Path:
        return self.path / f"log-{attempt}.txt"

    @contextlib.contextmanager
    def held(self, *, timeout_s: float = 300.0) -> Iterator[None]:
        """Only one process at a time writes into the folder: waits for one that was told to end and has not yet. The
        lock goes with its process, and is not inherited by children. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        with (self.path / "lock").open("w") as lock:
            while True:
                try:
                    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"another process still writes into {self.path}") from error
                time.sleep(0.1)
            yield

    def prepare(self, config: dict[str, Any]) -> None:
        """Makes the folder ready for a new attempt; checkpoints and metrics of earlier ones stay."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.stop.unlink(missing_ok=True)
        self.result.unlink(missing_ok=True)
        write_atomic(self.config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def ask_stop(self, reason: str) -> None:
        if self.path.is_dir() and not self.stop.exists():
            write_atomic(self.stop, reason)

    def read_stop(self) -> str | None:
        """The reason to stop, if the scheduler asked for it."""
        try:
            return self.stop.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def write_result(self, result: dict[str, Any]) -> None:
        write_atomic(self.result, json.dumps(result))

    def read_result(self) -> dict[str, Any] | None:
        try:
            result = json.loads(self.result.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return result if isinstance(result, dict) else None

    def read_metrics(self) -> list[dict[str, Any]]:
        """All metric lines, one per step: after a resume the later line of a step wins."""
        by_step = {line.get("step", -1): line for line in read_jsonl(self.metrics)}
        return [by_step[step] for step in sorted(by_step)]

    def read_trajectories(self, offset: int, limit: int, step: int | None = None) -> list[dict[str, Any]]:
        """Episodes in the order they were played, rank by rank; `step`: only those of that step."""
        files = sorted(self.path.glob("trajectories-*.jsonl"))
        episodes: Iterator[dict[str, Any]] = chain.from_iterable(map(read_jsonl, files))
        if step is not None:
            episodes = (episode for episode in episodes if episode.get("step") == step)
        return list(islice(episodes, offset, offset + limit))


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON-lines file. A half-written last line (the writer was killed or is writing) is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(value, dict):
                yield value


def write_atomic(path: Path, text: str) -> None:
    """A reader sees the old content or the new, never a part."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
