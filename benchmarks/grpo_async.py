"""Rollouts beside the learner against the same steps one after the other: `async_speedup`.

The environment's tool takes as long as a whole step without it. Synchronous, the machine waits for the tool in every
step; at staleness 1 the learner learns from one step's episodes while the tool works on the next one's. Model, tasks
and rewards are those of `short`, with fewer and shorter episodes and one call of the tool between two replies.

Both sides are runs of their own processes on both cores: one process, or a learner and one rollout worker (an actor on
Ray), with two threads each, since each of the two has the machine to itself while the other waits for the tool. They
take turns, a run each; a step is the time between two reports of the loop, and the first two steps of a run (start,
play ahead) are left out. The figure is the ratio of mean steps, that of throughputs: at staleness 1 steps come in
pairs, a long one and a short one.

    grpo.py --cases async                what is in the results file
    grpo_async.py STALENESS STEPS LATENCY_S    one run; prints what was measured as JSON
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.grpo_processes import HOME, MODEL, ROOT, THREADS, environment, make_model
from benchmarks.grpo_worker import spread
from benchmarks.report import figure
from chatgrpo.environments.base import Step, Task
from chatgrpo.environments.config import DatasetConfig
from chatgrpo.environments.dataset import dataset_source
from chatgrpo.environments.registry import Split, task_source
from chatgrpo.messages import Message, user
from chatgrpo.rewards.registry import reward
from chatgrpo.rollouts.episode import Episode

PROMPTS, GENERATIONS, MAX_TOKENS = 2, 4, 16
LEFT_OUT = 2


class SlowTool:
    """A question, a reply, the tool's answer after `latency_s`, a second reply."""

    def __init__(self, task: Task, latency_s: float) -> None:
        self._task, self._latency_s, self._called = task, latency_s, False

    def start(self) -> tuple[Message, ...]:
        return self._task.messages

    def step(self, reply: str) -> Step:
        if self._called:
            return Step(done=True)
        self._called = True
        time.sleep(self._latency_s)
        return Step(messages=(user(f"A tool says: {self._task.answer}. Repeat the answer."),))


class SlowTools:
    def __init__(self, tasks: Any, latency_s: float) -> None:
        self._tasks, self._latency_s = tasks, latency_s

    def __len__(self) -> int:
        return len(self._tasks)

    def task(self, index: int) -> Task:
        task: Task = self._tasks.task(index)
        return task

    def environment(self, task: Task) -> SlowTool:
        return SlowTool(task, self._latency_s)


@task_source("bench_slow_tool")
def slow_tools(*, split: Split, seed: int, num_eval: int, path: str, latency_s: float) -> SlowTools:
    return SlowTools(dataset_source(DatasetConfig(paths=[path]), split=split, num_eval=num_eval), latency_s)


@reward("bench_spread")
def spread_reward(task: Task, episode: Episode) -> float:
    return spread(episode.reply)


def settings(tasks: Path, *, staleness: int, steps: int, latency_s: float) -> dict[str, Any]:
    return {
        "model": MODEL,
        "environment": {
            "type": "plugin",
            "name": "bench_slow_tool",
            "params": {"path": str(tasks), "latency_s": latency_s},
        },
        "rewards": [{"type": "plugin", "name": "bench_spread"}],
        "prompts_per_step": PROMPTS,
        "num_generations": GENERATIONS,
        "rollout_batch_size": 2 * PROMPTS * GENERATIONS,
        "max_prompt_length": 256,
        "max_completion_length": MAX_TOKENS,
        "max_episode_length": 512,
        "learning_rate": 1e-4,
        "lora": {"r": 16, "alpha": 32},
        "max_steps": steps,
        "num_eval_prompts": 0,
        "save_steps": None,
        "environment_timeout_s": 600.0,
        "max_staleness": staleness,
        "resources": {"threads_per_worker": THREADS},
        **({"rollout_resources": {"threads_per_worker": THREADS}} if staleness else {}),
    }


def one_run(staleness: int, steps: int, latency_s: float) -> dict[str, Any]:
    """In a process of its own: the seconds of every step, and the greatest age of a token."""
    command = [sys.executable, __file__, str(staleness), str(steps), str(latency_s)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=900, env=environment(), cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    steps_s = [round(s, 2) for s in found["steps_s"]]
    print(
        f"  staleness {staleness} latency {latency_s:.2f} s: {steps_s}, of them {found['wait_s']:.2f} waiting",
        flush=True,
    )
    return found


def async_case(*, rounds: int = 2, steps: int = 12, minutes: float = 6.0) -> dict[str, Any]:
    """No further round begins when it would not end within `minutes`."""
    make_model()
    until = time.monotonic() + minutes * 60
    latency_s = statistics.median(one_run(0, 6, 0.0)["steps_s"][LEFT_OUT:])
    sides: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    round_s = 0.0
    while len(sides[0]) < rounds and (not sides[0] or time.monotonic() + round_s < until):
        began = time.monotonic()
        for staleness, runs in sides.items():
            runs.append(one_run(staleness, steps, latency_s))
        round_s = time.monotonic() - began
    means = {s: statistics.mean(t for run in runs for t in run["steps_s"][LEFT_OUT:]) for s, runs in sides.items()}
    return {
        "async_speedup": figure(
            means[0] / means[1],
            "x",
            at_least=1.5,
            sync_step_s=round(means[0], 2),
            async_step_s=round(means[1], 2),
            tool_latency_s=round(latency_s, 2),
            steps=len(sides[0]) * (steps - LEFT_OUT),
            max_staleness=1,
            sync={name: _mean(sides[0], name) for name in ("tokens", "generation_s", "wait_s")},
            at_staleness_1={name: _mean(sides[1], name) for name in ("tokens", "generation_s", "wait_s")},
        ),
        "async_staleness_max": figure(
            max(run["staleness_max"] for run in sides[1]), "updates", at_most=1, mean=_mean(sides[1], "staleness_mean")
        ),
    }


def _mean(runs: list[dict[str, Any]], key: str) -> float:
    return round(statistics.mean(run[key] for run in runs), 3)


def main(staleness: int, steps: int, latency_s: float) -> None:
    """Prints what `one_run` reads."""
    import torch

    from benchmarks.grpo_cases import CASES, write_tasks
    from benchmarks.grpo_processes import model_folder
    from chatgrpo.training.config import TrainConfig
    from chatgrpo.training.loop import Place, train

    with tempfile.TemporaryDirectory() as scratch:
        tasks = Path(scratch) / "tasks.jsonl"
        write_tasks(CASES[0], tasks, model_folder() / "tokenizer.json", warm_up=[])
        values = settings(tasks, staleness=staleness, steps=steps, latency_s=latency_s)
        config = TrainConfig.model_validate(values)
        torch.set_num_threads(THREADS)
        ends: list[float] = []
        figures: list[Mapping[str, float]] = []

        def report(metrics: Mapping[str, float], _: Path | None) -> None:
            ends.append(time.perf_counter())
            figures.append(metrics)
            print(f"    step {len(ends)}: {ends[-1] - (ends[-2:-1] or [began])[0]:.2f} s", file=sys.stderr, flush=True)

        run_dir = Path(scratch) / "run"
        run_dir.mkdir()
        place = Place(run_id="run", home=HOME, run_dir=run_dir)
        began = time.perf_counter()
        train(config, place, report, _ray_fleet(values) if staleness else None)
    starts = [began, *ends]
    known = [f for f in figures if "staleness_max" in f]
    out = {
        "steps_s": [b - a for a, b in zip(starts, ends, strict=False)],
        "tokens": statistics.mean(f["rollout/sampled_tokens"] for f in figures[LEFT_OUT:]),
        **{
            name: statistics.mean(f[f"rollout/{name}"] for f in figures[LEFT_OUT:])
            for name in ("generation_s", "wait_s")
        },
        "staleness_max": max((f["staleness_max"] for f in known), default=0.0),
        "staleness_mean": statistics.mean(f["staleness_mean"] for f in known) if known else 0.0,
    }
    print(json.dumps(out), flush=True)


def _ray_fleet(values: dict[str, Any]) -> Any:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Ray makes its workers nicer than the driver, which learns here; in a job both are workers of Ray.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    import ray

    from actors.rollout_worker import RayFleet

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"}},
    )
    setup = {"config": values, "plugins": ["benchmarks.grpo_async"], "home": str(HOME)}
    return lambda config: RayFleet(setup, config)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
