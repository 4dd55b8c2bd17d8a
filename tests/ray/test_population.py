"""Population based training through real Ray Tune, with a function in place of the training that learns as fast as its
learning rate says: who takes over from whom is known beforehand."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from chatgrpo.config import PlatformConfig
from chatgrpo.jobs import checkpoints
from chatgrpo.jobs.run_folder import RunFolder
from chatgrpo.jobs.seed_request import validate
from chatgrpo.jobs.sweeps.config import SweepConfig
from chatgrpo.jobs.sweeps.table import Table
from chatgrpo.training.config import TrainConfig

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]

STEPS, SAVE_STEPS = 10, 2
SWEEP: dict[str, Any] = {
    "train": {"model": "tiny", "max_steps": STEPS, "save_steps": SAVE_STEPS},
    "space": {"learning_rate": {"type": "uniform", "low": 0.1, "high": 0.9}},
    "metric": "reward",
    "num_samples": 2,
    "max_concurrent": 2,
    "scheduler": {"type": "pbt", "interval_steps": 6, "resample_probability": 0},
    "seed": 1,
}


def learn(config: TrainConfig, *, run_id: str, platform: PlatformConfig, callbacks: Any) -> dict[str, Any]:
    """What train_grpo.run does, as far as a sweep sees it. Skill grows by the learning rate each step; a trial waits
    before its last step until nobody is behind, so that there is always someone to compare with."""
    folder = RunFolder.of(platform.runs_dir, run_id)
    with folder.held():
        _learn(config, folder, platform.runs_dir, callbacks[0])
    return {}


def _learn(config: TrainConfig, folder: RunFolder, runs_dir: Path, callback: Any) -> None:
    newest = checkpoints.latest_valid(folder.checkpoints)
    skill = json.loads((newest / "skill").read_text()) if newest else 0.0
    first = checkpoints.step_of(newest) if newest else 0
    kept = [line for line in folder.read_metrics() if line["step"] <= first]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in kept))
    for step in range(first + 1, STEPS + 1):
        _wait_for_others(runs_dir, folder, step)
        skill += config.learning_rate
        line = {"step": step, "total_steps": STEPS, "reward": skill, "learning_rate": config.learning_rate}
        if step % SAVE_STEPS == 0 and step < STEPS:
            _save(folder, step, skill)
        with folder.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")
        callback.after_report(None, [line], None)
    folder.write_result({"status": "succeeded", "error": None, "cause": None})


def _save(folder: RunFolder, step: int, skill: float) -> None:
    def write(path: Path) -> None:
        (path / "skill").write_text(json.dumps(skill))

    checkpoints.save_atomic(checkpoints.folder(folder.checkpoints, step), write)


def _wait_for_others(runs_dir: Path, mine: RunFolder, step: int) -> None:
    """No trial is more than a step ahead of what the sweep knows of the other, or it would have ended before another
    could take over from it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        table = Table.load(runs_dir / "S" / "trials.json")
        others = [row for row in table.trials.values() if row.job_id != mine.path.name] if table else []
        if others and all(row.step >= step - 1 or (runs_dir / row.job_id / "result.json").exists() for row in others):
            return
        time.sleep(0.05)
    raise TimeoutError(f"the sweep did not hear of step {step - 1} of the other trial")


def explain(error: BaseException) -> tuple[str, str]:
    return "error", repr(error)


def test_the_worse_trial_goes_on_from_the_better_ones_checkpoint(ray_cluster: str, tmp_path: Path) -> None:
    from ray import cloudpickle

    from actors.sweep_runner import run_sweep

    # The trials' processes cannot import this module.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    told: list[Mapping[str, float]] = []
    sweep = validate(SweepConfig, SWEEP)
    result = run_sweep(
        sweep, sweep_id="S", platform=PlatformConfig(home=tmp_path), train=learn, explain=explain, report=told.append
    )

    assert (result["status"], result["step"], told[-1]["step"]) == ("succeeded", 2, 2)
    trials = json.loads((tmp_path / "runs" / "S" / "trials.json").read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["completed"] * 2
    assert sum(trial["takeovers"] for trial in trials) >= 1
    for trial in trials:
        lines = RunFolder.of(tmp_path / "runs", trial["job_id"]).read_metrics()
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
        stretches = trial["lineage"] or [{"from_step": 0, "params": trial["params"]}]
        skill = 0.0
        for line in lines:
            stretch = next(s for s in reversed(stretches) if s["from_step"] < line["step"])
            skill += stretch["params"]["learning_rate"]
            assert line["learning_rate"] == stretch["params"]["learning_rate"]
            assert line["reward"] == pytest.approx(skill), "the policy is the one that the lineage tells of"
        assert trial["last"] == lines[-1]["reward"]
    heir = next(trial for trial in trials if trial["takeovers"])
    donor = next(trial for trial in trials if trial is not heir)
    assert heir["lineage"][0]["trial_id"] in {heir["trial_id"], donor["trial_id"]}
    assert heir["lineage"][-1]["from_step"] % SAVE_STEPS == 0
