"""Steps of GRPO against TRL, at equal settings on the same tasks; and how near ours come to the machine's limit.

Each case has a process of ours and one of TRL's GRPOTrainer, which runs in an environment of its own (made once in the
user's cache folder). Both make a first step to warm up, on short prompts, then they are asked for steps in turn: one is
idle while the other works. A virtual machine takes back memory that is free for some seconds. With the allocator
settings that both sides have TRL keeps its own, ours gives it back after each step: after each of TRL's steps ours
makes one that is not measured. Times are medians of whole steps, rollout to new weights, in wall and in CPU seconds.

    short        4 prompts of ~60 tokens x 8 replies of up to 64, LoRA r=16, natural lengths; reward: the right number.
                 Groups of equal rewards have zero advantage: ours leave them out of the update, TRL does not.
    short_equal  the same with a reward that differs between any two replies: both train every row. TRL's work does not
                 depend on rewards, so its steps of `short` are the other side.
    short_full   short without LoRA
    long         prompts of 512 tokens
    tools        three replies of up to 32 tokens, an answer of about 40 tokens after the first and the second
    limits       decode and update against peak FLOP/s and bandwidth, see `grpo_limits`
    multi_lora   four small LoRA jobs one after the other against a cohort of them, see `grpo_multi_lora`
    learning     reward against steps and time over 3 seeds, see `grpo_learning`; `learning_real`, an hour, only if
                 asked for
    async        rollouts beside the learner against one after the other, no TRL; see `grpo_async`

TRL takes minutes where ours take seconds: it makes 5 measured steps in `short` and 3 in the others (`--steps`), fewer
when `--minutes` run out; every figure says how many. A run of some cases keeps the other figures of the results file.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.grpo_async import async_case
from benchmarks.grpo_cases import CASES, GENERATIONS, PROMPTS, Case
from benchmarks.grpo_learning import LEARNING, learning
from benchmarks.grpo_multi_lora import multi_lora
from benchmarks.grpo_processes import (
    HOME,
    MODEL,
    ROOT,
    THREADS,
    TRL,
    Worker,
    environment,
    make_model,
    make_trl,
    ours_worker,
    trl_worker,
    write_setup,
)
from benchmarks.report import RESULTS, figure, write_report

OUR_STEPS = 5


def run_case(case: Case, trl_python: Path, options: argparse.Namespace, until: float) -> dict[str, Any]:
    """Figures of a case. After `until` (monotonic seconds) no further round begins, except the first."""
    rounds = options.steps or case.trl_steps
    micro_batch = options.trl_micro_batch or case.trl_micro_batch
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        setup = write_setup(case, Path(scratch), seed=0, micro_batch=micro_batch, settings=json.loads(options.settings))
        ours = {
            name: stack.enter_context(ours_worker(setup, f"ours {name}", reward))
            for name, reward in case.rewards.items()
        }
        trl = stack.enter_context(trl_worker(setup, f"trl {case.name}", next(iter(case.rewards.values())), trl_python))
        for round_number in range(rounds):
            began = time.monotonic()
            trl.step()
            for mine in ours.values():
                mine.settle()
                for _ in range(math.ceil(OUR_STEPS / rounds)):
                    mine.step()
            if time.monotonic() + (time.monotonic() - began) > until and round_number + 1 < rounds:
                print(f"  time is up after {round_number + 1} of {rounds} rounds", flush=True)
                break
        for mine in ours.values():
            while len(mine.steps) < OUR_STEPS:
                mine.step()
        return case_figures(case, ours, trl, micro_batch)


def case_figures(case: Case, ours: Mapping[str, Worker], trl: Worker, micro_batch: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    theirs = {"version": TRL, "micro_batch": micro_batch, **trl.summary()}
    for name, mine in ours.items():
        sides: dict[str, Any] = {"ours": mine.summary(), "trl": theirs}
        goal = case.goals.get(name)
        found[f"speedup_{name}"] = figure(trl.median("wall_s") / mine.median("wall_s"), "x", at_least=goal, **sides)
        found[f"speedup_{name}_cpu"] = figure(
            trl.median("cpu_s") / mine.median("cpu_s"),
            "x",
            at_least=goal,
            ours_s=round(mine.median("cpu_s"), 2),
            trl_s=round(trl.median("cpu_s"), 2),
        )
        key, at_most = ("memory_ratio", 0.67) if name == "short" else (f"memory_ratio_{name}", None)
        found[key] = figure(
            mine.peak_gb / trl.peak_gb,
            "x",
            at_most=at_most,
            ours_gb=round(mine.peak_gb, 2),
            trl_gb=round(trl.peak_gb, 2),
            trl_micro_batch=micro_batch,
        )
    return found


def limits() -> dict[str, Any]:
    memory, found = (_of_process(what) for what in ("memory", "limits"))
    decode, update, parts = found["decode"], found["update"], found["products"]

    def rounded(values: Mapping[str, float], digits: int = 4) -> dict[str, float]:
        return {key: round(value, digits) for key, value in values.items()}

    held, planned = memory["held"], memory["planned"]
    return {
        "planned_memory_error": figure(
            abs(planned / held - 1),
            "of peak",
            at_most=0.15,
            planned_gb=round(planned / 1e9, 2),
            held_gb=round(held / 1e9, 2),
        ),
        "sgemm_peak_gflops": figure(
            found["peak"]["gflops"], "GFLOP/s", by=found["peak"]["by"], all=found["peak"]["all"]
        ),
        "memory_gb_per_s": figure(max(found["bandwidth"].values()), "GB/s", **rounded(found["bandwidth"], 1)),
        "gemm_ours_vs_mkl": figure(
            parts["decode_s"]["mkl"] / parts["decode_s"]["ours"],
            "x",
            rows=PROMPTS * GENERATIONS,
            seconds=rounded(parts["decode_s"]),
        ),
        "gemm_ours_vs_mkl_update": figure(
            parts["update_s"]["mkl"] / parts["update_s"]["ours"], "x", rows=2048, seconds=rounded(parts["update_s"])
        ),
        "decode_of_limit": figure(
            decode["limit_s"] / decode["step_s"],
            "of limit",
            at_least=0.7,
            batch=PROMPTS * GENERATIONS,
            tokens_per_s=round(PROMPTS * GENERATIONS / decode["step_s"]),
            **rounded(decode),
        ),
        "update_of_limit": figure(
            update["known_limit_s"] / update["known_s"],
            "of limit",
            at_least=0.6,
            activations="of the rollout",
            limit_s=round(update["known_limit_s"], 3),
            update_s=round(update["known_s"], 3),
        ),
        "update_of_limit_recompute": figure(
            update["again_limit_s"] / update["again_s"],
            "of limit",
            at_least=0.6,
            activations="computed again",
            limit_s=round(update["again_limit_s"], 3),
            update_s=round(update["again_s"], 3),
        ),
    }


def _of_process(what: str) -> dict[str, Any]:
    command: list[str | Path] = [sys.executable, ROOT / "benchmarks" / "grpo_limits.py", what, MODEL, HOME]
    done = subprocess.run(
        [*command, str(THREADS), "3"], stdout=subprocess.PIPE, check=True, timeout=600, env=environment()
    )
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def keep(figures: Mapping[str, Any]) -> None:
    """Writes the figures over those of the results file; after every case, so that none is lost."""
    path = RESULTS / "grpo.json"
    before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["figures"] if path.is_file() else {}
    write_report("grpo", {**before, **figures})


# Cases that need no TRL.
ALONE: dict[str, Callable[[], dict[str, Any]]] = {"limits": limits, "multi_lora": multi_lora, "async": async_case}


def main() -> None:
    default = [*ALONE, "learning", *(case.name for case in CASES)]
    parser = argparse.ArgumentParser(description="GRPO steps against TRL")
    parser.add_argument("--cases", nargs="+", choices=[*default, *set(LEARNING) - {"learning"}], default=default)
    parser.add_argument("--steps", type=int, help="measured steps of TRL in every case")
    parser.add_argument("--minutes", type=float, default=34.0, help="about how long the cases of steps may take")
    parser.add_argument("--trl-micro-batch", type=int, help="rows a forward of TRL; must divide 32")
    parser.add_argument("--settings", default="{}", help="fields of our training configuration, as JSON")
    options = parser.parse_args()
    # So that workers end with the driver, also in the middle of a step.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    make_model()
    for name in options.cases:
        if name in ALONE:
            print(name, flush=True)
            keep(ALONE[name]())
    if set(options.cases) <= set(ALONE):
        return
    trl_python = make_trl()
    for name in options.cases:
        if name in LEARNING:
            keep(learning(LEARNING[name], trl_python))
    until = time.monotonic() + options.minutes * 60
    waiting = [case for case in CASES if case.name in options.cases]
    while waiting:
        case = waiting.pop(0)
        left = until - time.monotonic()
        share = left * case.weight / (case.weight + sum(other.weight for other in waiting))
        print(f"{case.name}: about {share / 60:.0f} minutes at most", flush=True)
        keep(run_case(case, trl_python, options, time.monotonic() + share))


if __name__ == "__main__":
    main()
