"""Do both trainers learn alike? Mean sampled reward against steps and against time, over seeds.

Full fine-tuning, the same tasks in the same order for both sides; they differ in sampled tokens alone. Both processes
of a seed go in step, one works while the other waits.

    learning       the tiny model learns from nothing to repeat the letter that it is told: some minutes in all
    learning_real  SmolLM2-135M, sums of one-digit numbers: an hour

    ..._gap           ours - TRL's mean reward of the middle third of the steps and of the last third, in standard
                      errors of that mean over seeds, without sign, the larger of both; up to 4.3 is noise (Student's
                      t of three seeds, 95 %)
    ..._time_speedup  seconds of TRL's steps until its last third, over ours
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.grpo_cases import Case
from benchmarks.grpo_processes import Worker, make_model, ours_worker, trl_worker, write_setup
from benchmarks.report import figure

SEEDS = (0, 1, 2)
LEARNING = {
    "learning": Case(
        "learning",
        0,
        {"learning": "letters"},
        {},
        max_tokens=8,
        lora=False,
        learning_rate=5e-4,
        num_steps=61,
        model="tiny",
        prompts=8,
        generations=32,
        letters=True,
        trl_micro_batch=128,
    ),
    "learning_real": Case(
        "learning_real",
        0,
        {"learning_real": "numeric"},
        {},
        max_tokens=24,
        lora=False,
        learning_rate=2e-5,
        num_steps=25,
        largest=9,
    ),
}


def learning(case: Case, trl_python: Path) -> dict[str, Any]:
    make_model(case.model)
    (reward,) = case.rewards.values()
    steps = case.num_steps - 1
    gaps: dict[str, list[float]] = {"middle": [], "last": []}
    times: list[float] = []
    curves: dict[str, list[list[float]]] = {"ours": [], "trl": []}
    for seed in SEEDS:
        print(f"{case.name}, seed {seed}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            setup = write_setup(case, Path(folder), seed=seed, micro_batch=case.trl_micro_batch)
            with (
                ours_worker(setup, f"ours {case.name}", reward) as ours,
                trl_worker(setup, f"trl {case.name}", reward, trl_python) as trl,
            ):
                for _ in range(steps - 1):
                    trl.step()
                    ours.step()
                for name, side in (("ours", ours), ("trl", trl)):
                    curves[name].append([round(value, 3) for value in rewards(side)])
                for name, part in (
                    ("middle", slice(steps // 3, 2 * steps // 3)),
                    ("last", slice(2 * steps // 3, None)),
                ):
                    gaps[name].append(statistics.mean(rewards(ours)[part]) - statistics.mean(rewards(trl)[part]))
                times.append(seconds(trl, steps) / seconds(ours, steps))
    errors = {name: statistics.stdev(values) / len(values) ** 0.5 for name, values in gaps.items()}
    in_errors = {name: abs(statistics.mean(gaps[name])) / max(errors[name], 1e-9) for name in gaps}
    return {
        f"{case.name}_gap": figure(
            max(in_errors.values()),
            "standard errors",
            at_most=4.3,
            ours_minus_trl={name: [round(g, 4) for g in values] for name, values in gaps.items()},
            curves=curves,
        ),
        f"{case.name}_time_speedup": figure(
            statistics.median(times), "x", at_least=1, per_seed=[round(t, 2) for t in times], steps=steps
        ),
    }


def rewards(side: Worker) -> list[float]:
    return [step["reward"] for step in [side.warm_up, *side.steps]]


def seconds(side: Worker, steps: int) -> float:
    return sum(step["wall_s"] for step in side.steps[: -(steps // 3)])
