"""A sweep of two real trials through the queue, paused and taken up again. Four starts of Ray Train: too long for every
run of the suite.

    CHATGRPO_SWEEP=1 pytest tests/ray/test_sweep.py
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest

from chatgrpo.config import PlatformConfig
from chatgrpo.training.config import TrainConfig

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif("CHATGRPO_SWEEP" not in os.environ, reason="takes minutes; CHATGRPO_SWEEP=1 runs it"),
]

STEPS = 24
SWEEP: dict[str, Any] = {
    "train": {
        "model": "tiny",
        "environment": {"type": "plugin", "name": "toy_tool"},
        "rewards": [{"type": "environment"}],
        "prompts_per_step": 2,
        "num_generations": 4,
        "max_prompt_length": 32,
        "max_completion_length": 8,
        "max_episode_length": 64,
        "max_steps": STEPS,
        "num_eval_prompts": 4,
        "save_steps": 1,
        "resources": {"threads_per_worker": 1},
    },
    "space": {"learning_rate": {"type": "choice", "values": [1e-4, 1e-3]}},
    "metric": "reward",
    "num_samples": 2,
    "max_concurrent": 2,
    "scheduler": {"type": "none"},
}


async def test_a_sweep_that_was_paused_goes_on_where_its_trials_were(
    training_scheduler: Any, training_platform: PlatformConfig
) -> None:
    from actors.job_scheduler import JobClient

    jobs, runs = JobClient(training_scheduler), training_platform.runs_dir

    async def until(*states: str, figures: bool = False) -> dict[str, Any]:
        for _ in range(1200):
            sweep = await jobs.sweep(sweep_id, owner="ann")
            if sweep["status"] in states and ("reward" in sweep["metrics"] or not figures):
                return sweep
            assert sweep["status"] != "failed", sweep["error"]
            await asyncio.sleep(0.1)
        raise AssertionError(f"still {sweep['status']}, wanted {states}: {await jobs.logs(sweep_id, owner='ann')}")

    sweep_id = (await jobs.submit({"sweep": SWEEP}, owner="ann"))["job_id"]
    await until("running", "succeeded", figures=True)
    await jobs.pause(sweep_id, owner="ann")
    assert (await until("paused"))["best"] is not None
    await jobs.resume(sweep_id, owner="ann")
    done = await until("succeeded")

    assert [trial["state"] for trial in done["trials"]] == ["completed"] * 2
    for trial in done["trials"]:
        lines = [json.loads(line) for line in (runs / trial["job_id"] / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(STEPS + 1))
        assert trial["best"] == max(line["reward"] for line in lines if "reward" in line)
        assert (runs / trial["job_id"] / "export" / "model" / "config.json").is_file()
    best = done["trials"][0]
    assert best["best"] >= done["trials"][1]["best"]
    assert TrainConfig.model_validate(done["best"]["config"]).learning_rate == best["params"]["learning_rate"]
    assert (runs / sweep_id / "best.yaml").is_file()
    await jobs.delete(sweep_id, owner="ann")
    assert not [path for path in runs.iterdir() if path.name.startswith(sweep_id)]
