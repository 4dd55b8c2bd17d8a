"""The sweeps of configs/tune on the tiny model, as anyone would start them: how long they take and what they find.

`tiny.yaml`: eight learning rates under ASHA. `tiny-pbt.yaml`: a population of four. Every trial is a whole run in its
own Ray Train; the clock runs from the command to its end, the start of Ray included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import figure, write_report

ROOT = Path(__file__).parent.parent
FEW_MINUTES_S = 300.0


def run(recipe: str, home: Path) -> tuple[float, list[dict[str, Any]]]:
    """(wall seconds, the rows of its table, best first) of one sweep."""
    command = [sys.executable, str(ROOT / "train_grpo.py"), "--tune", str(ROOT / "configs/tune" / recipe)]
    began = time.monotonic()
    # A cluster of its own, whatever else runs on this machine.
    own = {"CHATGRPO_HOME": str(home), "CHATGRPO_RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled"}
    subprocess.run([*command, "--run-id", recipe], check=True, cwd=ROOT, env=os.environ | own)
    wall_s = time.monotonic() - began
    trials = json.loads((home / "runs" / recipe / "trials.json").read_text())["trials"]
    return wall_s, sorted(trials, key=lambda trial: trial["best"], reverse=True)


def asha_figures(home: Path) -> dict[str, Any]:
    wall_s, trials = run("tiny.yaml", home)
    best, worst = trials[0], trials[-1]
    stopped = sum(trial["state"] == "stopped" for trial in trials)
    table = [{"learning_rate": t["params"]["learning_rate"], "reward": t["best"], "steps": t["step"]} for t in trials]
    return {
        "sweep_wall_s": figure(wall_s, "s", at_most=FEW_MINUTES_S, trials=len(trials)),
        "stopped_early": figure(stopped, "trials", at_least=len(trials) // 2 + 1, of=len(trials)),
        "best_minus_worst_reward": figure(best["best"] - worst["best"], "reward", at_least=0.3, table=table),
    }


def population_figures(home: Path) -> dict[str, Any]:
    wall_s, trials = run("tiny-pbt.yaml", home)
    return {
        "population_wall_s": figure(wall_s, "s", at_most=FEW_MINUTES_S, trials=len(trials)),
        "population_takeovers": figure(sum(trial["takeovers"] for trial in trials), "takeovers", at_least=1),
        "population_best_reward": figure(trials[0]["best"], "reward", lineage=trials[0]["lineage"]),
        "population_worst_reward": figure(trials[-1]["best"], "reward", lineage=trials[-1]["lineage"]),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        figures = asha_figures(Path(folder))
        write_report("sweep", figures)
        write_report("sweep", figures | population_figures(Path(folder)))
