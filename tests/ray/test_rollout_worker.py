"""Rollout workers as Ray actors: one is killed with `kill -9`, one hangs, the third goes on; no group is lost or
doubled."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.rollout_worker import RayFleet
from chatgrpo.config import PlatformConfig
from chatgrpo.plugins import load_plugins
from chatgrpo.rollouts.trajectories import read_trajectories
from chatgrpo.training.config import TrainConfig
from chatgrpo.training.loop import Outcome, Place, train

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180), pytest.mark.filterwarnings("ignore")]

# The toy, in threads, whose tool does not answer while the file HOLD is there. Who plays it leaves its process id.
PLUGIN = """
import os
import time
from dataclasses import dataclass
from pathlib import Path
from chatgrpo.environments.registry import task_source
from chatgrpo.environments.toy_tool import ToyToolSource, toy_tool_source

HOLD = Path({hold!r})

class Held:
    def __init__(self, inner):
        self.inner = inner
    def start(self):
        HOLD.with_name(f"plays-{{os.getpid()}}").touch()
        return self.inner.start()
    def step(self, reply):
        while HOLD.exists():
            time.sleep(0.02)
        return self.inner.step(reply)

class Source:
    def __init__(self, inner):
        self.inner = inner
    def __len__(self):
        return len(self.inner)
    def task(self, index):
        return self.inner.task(index)
    def environment(self, task):
        return Held(self.inner.environment(task))

@task_source("held_toy")
def source(*, split, seed, num_eval):
    return Source(toy_tool_source(split=split, seed=seed, num_eval=num_eval))
"""

STEPS, PROMPTS = 8, 4
CONFIG: dict[str, Any] = {
    "model": "tiny",
    "environment": {"type": "plugin", "name": "held_toy"},
    "rewards": [{"type": "environment"}],
    "prompts_per_step": PROMPTS,
    "num_generations": 4,
    # Three groups a worker: none can take all.
    "rollout_batch_size": 12,
    "max_prompt_length": 32,
    "max_completion_length": 8,
    "max_episode_length": 64,
    "learning_rate": 1e-3,
    "max_steps": STEPS,
    "num_eval_prompts": 0,
    "save_steps": None,
    "lora": {"r": 4, "alpha": 8},
    "max_staleness": 1,
    "rollout_workers": 3,
    "rollout_timeout_s": 10.0,
    "environment_timeout_s": 300.0,
    "rollout_resources": {"cpus_per_worker": 0.25, "threads_per_worker": 1},
    "resources": {"threads_per_worker": 1},
}


def test_a_killed_worker_and_one_that_hangs_lose_and_double_no_group(
    ray_cluster: str, training_platform: PlatformConfig, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    plugin = tmp_path / "held.py"
    plugin.write_text(PLUGIN.format(hold=str(hold)))
    load_plugins([str(plugin)])
    home, run_dir = training_platform.home, training_platform.runs_dir / "async"
    run_dir.mkdir(parents=True)
    # As in `train_grpo._worker`, whose process the actors would belong to.
    setup = {"config": CONFIG, "plugins": [str(plugin)], "home": str(home)}
    outcomes: list[Outcome] = []

    def learn() -> None:
        config, place = TrainConfig.model_validate(CONFIG), Place(run_id="async", home=home, run_dir=run_dir)
        outcomes.append(train(config, place, lambda *_: None, partial(RayFleet, setup)))

    running = threading.Thread(target=learn)
    running.start()
    victims: list[psutil.Process] = []
    try:
        until(lambda: len(list(tmp_path.glob("plays-*"))) == 3, running)
        victims = [psutil.Process(int(path.name.split("-")[1])) for path in sorted(tmp_path.glob("plays-*"))[:2]]
        victims[0].kill()
        victims[1].send_signal(signal.SIGSTOP)
    finally:
        hold.unlink(missing_ok=True)
        running.join(timeout=120)
        for process in victims:
            if process.is_running():
                os.kill(process.pid, signal.SIGKILL)
    assert [outcome.step for outcome in outcomes] == [STEPS]
    steps = metrics(run_dir)
    assert sum(m["rollout/worker_restarts"] for m in steps) >= 2
    assert sum(m["rollout/reassigned_groups"] for m in steps) >= 4
    assert max(m["staleness_max"] for m in steps) == 1
    played = list(read_trajectories(run_dir / "trajectories-0.jsonl"))
    assert len(played) == len({(t.group_id, t.generation) for t in played}) == STEPS * PROMPTS * 4
    assert sorted({int(t.group_id.split("-")[0]) for t in played}) == list(range(STEPS * PROMPTS))
    # The actors end with the run.
    until(lambda: not [p for p in actors() if p not in victims])


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def actors() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE and any("ray::RolloutActor" in w for w in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def until(holds: Any, running: threading.Thread | None = None) -> None:
    for _ in range(2400):
        if holds():
            return
        assert running is None or running.is_alive(), "the run ended"
        time.sleep(0.05)
    raise AssertionError("waited for two minutes in vain")
