"""Do both trainers learn alike? Mean sampled reward against steps and against time, over seeds.

Sums of one-digit numbers, full fine-tuning, the same tasks in the same order for both sides; they differ in sampled
tokens alone. Both processes of a seed go in step, one works while the other waits. Half an hour to an hour in all.

    learning_gap           ours - TRL's mean reward of the last third of the steps, in standard errors of that mean over
                           seeds, without sign; up to 4.3 is noise (Student's t of three seeds, 95 %)
    learning_time_speedup  seconds of TRL's steps until its last third, over ours
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.grpo_cases import Case
from benchmarks.grpo_processes import Worker, ours_worker, trl_worker, write_setup
from benchmarks.report import figure

SEEDS, STEPS = (0, 1, 2), 24
CASE = Case("learning", 0, {}, {}, max_tokens=24, lora=False, learning_rate=2e-5, num_steps=STEPS + 1, largest=9)


def learning(trl_python: Path) -> dict[str, Any]:
    gaps: list[float] = []
    times: list[float] = []
    curves: dict[str, list[list[float]]] = {"ours": [], "trl": []}
    for seed in SEEDS:
        print(f"learning, seed {seed}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            setup = write_setup(CASE, Path(folder), seed=seed, micro_batch=CASE.trl_micro_batch)
            with (
                ours_worker(setup, "ours learning", "numeric") as ours,
                trl_worker(setup, "trl learning", "numeric", trl_python) as trl,
            ):
                for _ in range(STEPS - 1):
                    trl.step()
                    ours.step()
                for name, side in (("ours", ours), ("trl", trl)):
                    curves[name].append([round(reward, 3) for reward in rewards(side)])
                gaps.append(last_third(rewards(ours)) - last_third(rewards(trl)))
                times.append(seconds(trl) / seconds(ours))
    error = statistics.stdev(gaps) / len(gaps) ** 0.5
    gap = statistics.mean(gaps)
    return {
        "learning_gap": figure(
            abs(gap) / max(error, 1e-9),
            "standard errors",
            at_most=4.3,
            ours_minus_trl=round(gap, 4),
            per_seed=[round(g, 4) for g in gaps],
            curves=curves,
        ),
        "learning_time_speedup": figure(
            statistics.median(times), "x", at_least=1, per_seed=[round(t, 2) for t in times], steps=STEPS
        ),
    }


def rewards(side: Worker) -> list[float]:
    return [step["reward"] for step in [side.warm_up, *side.steps]]


def last_third(values: list[float]) -> float:
    return statistics.mean(values[-(len(values) // 3) :])


def seconds(side: Worker) -> float:
    return sum(step["wall_s"] for step in side.steps[: -(STEPS // 3)])
