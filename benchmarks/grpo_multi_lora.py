"""Four LoRA jobs on one base: one after the other in the normal way, against the same four as a cohort.

A process for each side. `alone` makes its four jobs one by one, each a whole run of its own that begins with a step to
warm up; `cohort` holds all four. They are asked in turn: `alone` for the next job's steps, `cohort` for as many of all
four. Start-up (processes, imports, loading a model) is told apart and is not in the ratio. Both train every row: the
reward differs between any two replies. Samples are episodes; natural lengths, the same seeds on both sides.

    1 prompt of ~60 tokens x 4 replies of up to 64 a step, LoRA r=16, SmolLM2-135M: a job that leaves the machine idle
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.grpo_cases import CASES
from benchmarks.grpo_processes import Worker, worker, write_setup
from benchmarks.report import figure

JOBS, STEPS, PROMPTS, GENERATIONS = 4, 6, 1, 4
MULTI_LORA = replace(CASES[0], name="multi_lora", rewards={"multi_lora": "spread"}, goals={"multi_lora": 2.5})


def multi_lora() -> dict[str, Any]:
    """The figures, of as many rounds as there are jobs."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        setup = write_setup(MULTI_LORA, Path(scratch), seed=0, micro_batch=8)
        alone, cohort = (stack.enter_context(_worker(setup, side)) for side in ("alone", "cohort"))
        for _ in range(JOBS - 1):
            cohort.step()
            alone.step()
        cohort.step()
        return figures(alone, cohort)


def figures(alone: Worker, cohort: Worker) -> dict[str, Any]:
    """`alone`: its first job was made at once, the others when asked."""
    each = [alone.warm_up, *alone.steps]
    alone_gb = alone.warm_up["peak_bytes"] / 1e9  # later jobs find what earlier ones left
    serial_s, serial_cpu_s = (sum(job[key] for job in each) for key in ("wall_s", "cpu_s"))
    samples = JOBS * STEPS * PROMPTS * GENERATIONS

    def side(wall_s: float, tokens: float, peak: float) -> dict[str, Any]:
        return {
            "wall_s": round(wall_s, 2),
            "samples_per_s": round(samples / wall_s, 2),
            "tokens_per_s": round(tokens / wall_s, 1),
            "peak_gb": round(peak, 2),
        }

    size = {"jobs": JOBS, "prompts": PROMPTS, "generations": GENERATIONS, "max_tokens": MULTI_LORA.max_tokens}
    return {
        "multi_lora_speedup": figure(
            serial_s / cohort.median("wall_s"),
            "x",
            at_least=2.5,
            **size,
            steps_a_job=STEPS,
            rounds=len(cohort.steps),
            alone=side(serial_s, sum(job["sampled_tokens"] for job in each), alone_gb),
            cohort=side(cohort.median("wall_s"), cohort.median("sampled_tokens"), cohort.peak_gb),
            start_up_s={
                "alone": round(statistics.median(job["start_up_s"] for job in each), 2),
                "cohort": round(cohort.warm_up["start_up_s"], 2),
            },
        ),
        "multi_lora_speedup_cpu": figure(serial_cpu_s / cohort.median("cpu_s"), "x"),
        "multi_lora_speedup_tokens": figure(
            (cohort.median("sampled_tokens") / cohort.median("wall_s"))
            / (sum(job["sampled_tokens"] for job in each) / serial_s),
            "x",
        ),
        "multi_lora_memory": figure(cohort.peak_gb / (JOBS * alone_gb), "of four processes"),
    }


def _worker(setup: Mapping[str, Any], side: str) -> Any:
    folder = Path(setup["tasks"]).parent
    path = folder / f"{side}.json"
    told = {**setup, "reward": "spread", "side": side, "prompts": PROMPTS, "generations": GENERATIONS}
    path.write_text(json.dumps(told), encoding="utf-8")
    return worker(side, [sys.executable, Path(__file__), path], folder)


# The workers


def main() -> None:
    import torch

    from benchmarks.grpo_ours import config
    from benchmarks.grpo_worker import Turns

    turns = Turns()
    torch.set_num_threads(turns.case["threads"])
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        configs = [config({**turns.case, "seed": job, "settings": {"max_steps": 1 + STEPS}}) for job in range(JOBS)]
        if turns.case["side"] == "alone":
            _alone(turns, configs, Path(folder))
        else:
            _cohort(turns, configs, Path(folder), began)


def _alone(turns: Any, configs: list[Any], folder: Path) -> None:
    from chatgrpo.training.loop import Place, train

    for job, config in enumerate(configs):
        run_dir = folder / f"alone-{job}"
        run_dir.mkdir()
        place = Place(run_id=run_dir.name, home=Path(turns.case["home"]), run_dir=run_dir)
        train(config, place, _Job(turns).report)


class _Job:
    """Tells of a job's steps after the first, as one turn."""

    def __init__(self, turns: Any) -> None:
        self._turns, self._began = turns, time.perf_counter()
        self._start_up_s = self._tokens = 0.0

    def report(self, metrics: Mapping[str, float], _: Path | None) -> None:
        if metrics["step"] == 1:
            self._start_up_s = time.perf_counter() - self._began
            self._turns.began()
            return
        self._tokens += metrics["rollout/sampled_tokens"]
        is_last = metrics["step"] == 1 + STEPS
        if is_last and not self._turns.done(sampled_tokens=self._tokens, start_up_s=self._start_up_s):
            raise SystemExit(0)


class _Rounds:
    """Every job waits at the end of its steps until all are there; then the driver hears of the round and asks anew."""

    def __init__(self, turns: Any, began: float) -> None:
        self._turns, self._began, self._tokens = turns, began, 0.0
        self._warm_up_s = 0.0
        self._counting = threading.Lock()
        self._meeting = threading.Barrier(JOBS, action=self._next)
        self._ends = False

    def report(self, metrics: Mapping[str, float], _: Path | None) -> None:
        with self._counting:
            self._tokens += metrics["rollout/sampled_tokens"]
        if (metrics["step"] - 1) % STEPS == 0:
            self._meeting.wait()
            if self._ends:
                raise SystemExit(0)

    def _next(self) -> None:
        if not self._warm_up_s:
            self._warm_up_s = time.perf_counter() - self._began
        self._ends = not self._turns.done(sampled_tokens=self._tokens, start_up_s=self._warm_up_s)
        self._tokens = 0.0


def _cohort(turns: Any, configs: list[Any], folder: Path, began: float) -> None:
    from chatgrpo.training.cohort import Member, train_together
    from chatgrpo.training.loop import Place

    rounds = _Rounds(turns, began)
    members = []
    for job, config in enumerate(configs):
        run_dir = folder / f"cohort-{job}"
        run_dir.mkdir()
        place = Place(run_id=run_dir.name, home=Path(turns.case["home"]), run_dir=run_dir)
        endless = config.model_copy(update={"max_steps": 1000})
        members.append(Member(config=endless, place=place, report=rounds.report))
    train_together(members)


if __name__ == "__main__":
    main()
