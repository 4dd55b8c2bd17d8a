"""Sweeps of two real trials through the queue, paused and taken up again. Four and more starts of Ray Train: too long
for every run of the suite, which has `test_population.py`.

    CHATGRPO_SWEEP=1 pytest tests/ray/test_sweep.py
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from chatgrpo.config import PlatformConfig
from chatgrpo.training.config import TrainConfig
from tests.toy import TOY

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif("CHATGRPO_SWEEP" not in os.environ, reason="takes minutes; CHATGRPO_SWEEP=1 runs it"),
]

STEPS = 24
SWEEP: dict[str, Any] = {
    "train": TOY | {"max_steps": STEPS, "save_steps": 1, "resources": {"threads_per_worker": 1}},
    "space": {"learning_rate": {"type": "choice", "values": [1e-4, 1e-3]}},
    "metric": "reward",
    "num_samples": 2,
    "max_concurrent": 2,
    "scheduler": {"type": "none"},
}


POPULATION = SWEEP | {
    "train": SWEEP["train"] | {"save_steps": 4, "resources": {"threads_per_worker": 1}},
    "space": {"learning_rate": {"type": "loguniform", "low": 1e-6, "high": 1e-2}},
    "scheduler": {"type": "pbt", "interval_steps": 8},
    "seed": 1,
}


class Sweep:
    """A sweep that was submitted, and where it is."""

    def __init__(self, jobs: Any, sweep_id: str) -> None:
        self.jobs, self.id = jobs, sweep_id

    async def until(self, *states: str, figures: bool = False) -> dict[str, Any]:
        for _ in range(2400):
            sweep: dict[str, Any] = await self.jobs.sweep(self.id, owner="ann")
            if sweep["status"] in states and ("reward" in sweep["metrics"] or not figures):
                return sweep
            assert sweep["status"] != "failed", sweep["error"]
            await asyncio.sleep(0.1)
        raise AssertionError(f"still {sweep['status']}, wanted {states}: {await self.jobs.logs(self.id, owner='ann')}")

    async def paused_and_done(self) -> dict[str, Any]:
        await self.until("running", "succeeded", figures=True)
        await self.jobs.pause(self.id, owner="ann")
        assert (await self.until("paused"))["best"] is not None
        await self.jobs.resume(self.id, owner="ann")
        return await self.until("succeeded")


@pytest.fixture
def jobs(training_scheduler: Any) -> Any:
    from actors.job_scheduler import JobClient

    return JobClient(training_scheduler)


def lines_of(runs: Path, trial: dict[str, Any]) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (runs / trial["job_id"] / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    assert (runs / trial["job_id"] / "export" / "model" / "config.json").is_file()
    return lines


async def test_a_population_hands_policies_on_and_its_table_tells_how_each_was_trained(
    jobs: Any, training_platform: PlatformConfig
) -> None:
    sweep_id = (await jobs.submit({"sweep": POPULATION}, owner="ann"))["job_id"]
    done = await Sweep(jobs, sweep_id).paused_and_done()

    trials = done["trials"]
    assert [trial["state"] for trial in trials] == ["completed"] * 2
    assert sum(trial["takeovers"] for trial in trials) >= 1
    for trial in trials:
        stretches = trial["lineage"] or [{"from_step": 0, "params": trial["params"]}]
        assert stretches[-1]["params"] == trial["params"]
        for line in lines_of(training_platform.runs_dir, trial):
            stretch = next(s for s in reversed(stretches) if s["from_step"] < line["step"] or not line["step"])
            assert line.get("learning_rate", stretch["params"]["learning_rate"]) == stretch["params"]["learning_rate"]
    await jobs.delete(sweep_id, owner="ann")


async def test_a_sweep_that_was_paused_goes_on_where_its_trials_were(
    jobs: Any, training_platform: PlatformConfig
) -> None:
    runs = training_platform.runs_dir
    sweep_id = (await jobs.submit({"sweep": SWEEP}, owner="ann"))["job_id"]
    done = await Sweep(jobs, sweep_id).paused_and_done()

    assert [trial["state"] for trial in done["trials"]] == ["completed"] * 2
    for trial in done["trials"]:
        assert trial["best"] == max(line["reward"] for line in lines_of(runs, trial) if "reward" in line)
    best = done["trials"][0]
    assert best["best"] >= done["trials"][1]["best"]
    assert TrainConfig.model_validate(done["best"]["config"]).learning_rate == best["params"]["learning_rate"]
    assert (runs / sweep_id / "best.yaml").is_file()
    await jobs.delete(sweep_id, owner="ann")
    assert not [path for path in runs.iterdir() if path.name.startswith(sweep_id)]
