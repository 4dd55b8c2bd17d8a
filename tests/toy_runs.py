"""Short runs on the tiny model and the toy tool, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatgrpo.training.config import TrainConfig
from chatgrpo.training.loop import Outcome, Place, Run, train


def place(home: Path, models_dir: Path, run_id: str = "RUN") -> Place:
    run_dir = home / "runs" / run_id
    run_dir.mkdir(parents=True, exist_ok=True)
    if not (home / "models").exists():
        (home / "models").symlink_to(models_dir)
    return Place(run_id=run_id, home=home, run_dir=run_dir)


def run(config: dict[str, Any], where: Place) -> tuple[Outcome, list[Mapping[str, float]]]:
    """The outcome, and the metrics of every step."""
    reports: list[Mapping[str, float]] = []
    outcome = train(TrainConfig.model_validate(config), where, lambda metrics, _: reports.append(metrics))
    return outcome, reports


def interrupt_at_step(interrupted: Run, step: int) -> None:
    """Raises KeyboardInterrupt out of the run when it reports the step."""

    def report(metrics: Mapping[str, float], _: Path | None) -> None:
        if metrics["step"] == step:
            raise KeyboardInterrupt

    interrupted._report = report
    interrupted.train()
