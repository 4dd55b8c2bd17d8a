"""Steps of GRPO against TRL, at equal settings on the same tasks; and how near ours come to the machine's limit.

Each case has a process of ours and one of TRL's GRPOTrainer, which runs in an environment of its own (made once in the
user's cache folder). Both make a first step to warm up, then they are asked for steps in turn: one is idle while the
other works. Times are medians of whole steps, rollout to new weights, in wall and in CPU seconds.

    short        4 prompts of ~60 tokens x 8 replies of up to 64, LoRA r=16, natural lengths; reward: the right number.
                 Groups of equal rewards have zero advantage: ours leave them out of the update, TRL does not.
    short_equal  the same with a reward that differs between any two replies: both train every row. TRL's work does not
                 depend on rewards, so its steps of `short` are the other side.
    short_full   short without LoRA
    long         prompts of 512 tokens
    tools        three replies of up to 32 tokens, an answer of about 40 tokens after the first and the second
    limits       decode and update against peak FLOP/s and bandwidth, see `grpo_limits`

TRL takes minutes where ours take seconds: it makes 5 measured steps in `short` and 3 in the others (`--steps`), fewer
when `--minutes` run out; every figure says how many. A run of some cases keeps the other figures of the results file.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import RESULTS, figure, write_report
from chatgrpo.rollouts.cursor import DataCursor

ROOT = Path(__file__).parent.parent
TRL = "1.16.0"
MODEL = "smollm2-135m-instruct"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatgrpo-bench"
HOME = CACHE / "home"
THREADS = os.cpu_count() or 1
PROMPTS, GENERATIONS, NUM_TASKS, SEED = 4, 8, 80, 0
OUR_STEPS = 5
STEP_TIMEOUT_S = 900.0

TOOL_ANSWERS = (
    "The calculator has read your expression and found no error in it, so the result is as you wrote it. Now look at "
    "the question once more and explain the sum in your own words.",
    "The calculator agrees with that way of adding the two numbers and has nothing more to say about it. Please write "
    "the final answer now, as one number at the end.",
)
TOWN = (
    "The town lies between two hills, and a small river runs past the old mill on its way to the sea.",
    "On market days the farmers bring apples, cheese and bread, and the square is full before the sun is high.",
    "Most of the houses are built of grey stone, with red roofs and narrow windows that look out to the south.",
    "A road leads from the church to the harbour, where fishing boats wait for the evening tide.",
    "In winter the wind is strong, and people stay at home by the fire and tell each other long stories.",
    "The school stands beside the library, and the children walk there along the river every morning.",
    "Travellers often stop at the inn, which is known for its soup and for the songs of its keeper.",
    "Nobody remembers who planted the great oak, but everyone in the town has sat in its shade.",
)


@dataclass(frozen=True)
class Case:
    """`rewards`: the case's name of each process of ours -> its reward. `weight`: share of the time."""

    name: str
    weight: float
    rewards: Mapping[str, str]
    goals: Mapping[str, float]
    prompt_tokens: int = 0
    max_tokens: int = 64
    turns: int = 1
    lora: bool = True
    learning_rate: float = 1e-4
    trl_steps: int = 3
    trl_micro_batch: int = 8


CASES = (
    Case("short", 8, {"short": "numeric", "short_equal": "spread"}, {"short": 6}, trl_steps=5),
    Case("short_full", 5, {"short_full": "numeric"}, {"short_full": 4}, lora=False, learning_rate=1e-5),
    Case("tools", 8, {"tools": "numeric"}, {"tools": 8}, max_tokens=32, turns=3),
    # 4 rows of 576 tokens are as much work for a product as 18 short ones, in half the memory of 8.
    Case("long", 12, {"long": "numeric"}, {"long": 10}, prompt_tokens=512, trl_micro_batch=4),
)


# Tasks


def write_tasks(case: Case, path: Path) -> None:
    chooser = random.Random(SEED)
    sums = chooser.sample([(a, b) for a in range(2, 60) for b in range(2, 60)], NUM_TASKS)
    with path.open("w", encoding="utf-8") as file:
        for number, (a, b) in enumerate(sums):
            question = f"State the final answer to the following arithmetic problem: {a} + {b} ="
            if case.prompt_tokens:
                question = padded(question, case.prompt_tokens, start=number)
            row: dict[str, Any] = {"messages": [{"role": "user", "content": question}], "answer": str(a + b)}
            if case.turns > 1:
                row["user_turns"] = list(TOOL_ANSWERS[: case.turns - 1])
            file.write(json.dumps(row) + "\n")


def padded(question: str, tokens: int, *, start: int) -> str:
    """The question behind as much of a description as makes a prompt of about `tokens`, template included. Prompts
    begin with different sentences, so that they share no prefix."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    template = 32
    text = ""
    for number in range(start, start + 1000):
        longer = text + TOWN[number % len(TOWN)] + " "
        if len(tokenizer.encode(longer + question).ids) + template > tokens:
            break
        text = longer
    return text + question


# Processes


def model_folder() -> Path:
    return HOME / "models" / MODEL


def make_model() -> None:
    """In a process of its own: the driver stays small."""
    if (model_folder() / "config.json").is_file():
        return
    print("preparing the model once", flush=True)
    code = (
        "import sys; from pathlib import Path; from chatgrpo.inference.loading import load; "
        "load(sys.argv[1], models_dir=Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, MODEL, HOME / "models"], check=True, timeout=600)


def make_trl() -> Path:
    """TRL's Python. Its other libraries have the versions that ours has."""
    pins = [f"trl=={TRL}", *(f"{name}=={version(name).split('+')[0]}" for name in ("torch", "transformers", "peft"))]
    folder = CACHE / f"trl-{TRL}"
    python, made = folder / "bin" / "python", folder / ".made"
    if made.is_file() and made.read_text() == "\n".join(pins):
        return python
    print(f"installing {' '.join(pins)} in {folder}", flush=True)
    local = ROOT / ".uv" / "bin" / "uv"
    uv = str(local) if local.exists() else shutil.which("uv")
    if uv is None:
        raise SystemExit("no uv: run `make setup` first")
    env = dict(os.environ)
    wheels = env.get("UV_FIND_LINKS") or env.get("PIP_FIND_LINKS")
    if wheels:
        env["UV_FIND_LINKS"] = wheels
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True, env=env)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *pins], check=True, env=env, timeout=1200)
    made.write_text("\n".join(pins))
    return python


def environment() -> dict[str, str]:
    """The same for both sides: idle threads sleep, one thread a core, the allocator as it is."""
    return {
        **os.environ,
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": str(THREADS),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


class Worker:
    """A process that makes a step whenever it is asked to."""

    def __init__(self, label: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.label, self._process, self._log = label, process, log
        self.warm_up = self._read()
        self.steps: list[dict[str, float]] = []

    def step(self) -> float:
        """Seconds of one more step."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"step\n")
        self._process.stdin.flush()
        self.steps.append(self._read())
        return self.steps[-1]["wall_s"]

    def median(self, key: str) -> float:
        return statistics.median(step[key] for step in self.steps)

    @property
    def peak_gb(self) -> float:
        return max(step["peak_bytes"] for step in [self.warm_up, *self.steps]) / 1e9

    def summary(self) -> dict[str, Any]:
        keys = [k for k in self.steps[0] if k != "peak_bytes"]
        return {
            "steps": len(self.steps),
            **{k: round(self.median(k), 2) for k in keys},
            "peak_gb": round(self.peak_gb, 2),
        }

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], STEP_TIMEOUT_S)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            what = "ended" if ready else f"did not answer within {STEP_TIMEOUT_S:g} s"
            raise RuntimeError(f"{self.label} {what}:\n{self._log.read_text(errors='replace')[-3000:]}")
        figures: dict[str, float] = json.loads(line)
        told = " ".join(f"{k} {v / 1e9:.2f} GB" if k == "peak_bytes" else f"{k} {v:.1f}" for k, v in figures.items())
        print(f"  {self.label:18} {told}", flush=True)
        return figures


@contextmanager
def worker(label: str, command: Sequence[str | Path], folder: Path) -> Iterator[Worker]:
    log = folder / f"{label.replace(' ', '-')}.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment(), bufsize=0
        )
    try:
        yield Worker(label, process, log)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


# Cases


def run_case(case: Case, trl_python: Path, options: argparse.Namespace, until: float) -> dict[str, Any]:
    """Figures of a case. After `until` (monotonic seconds) no further round begins, except the first."""
    rounds = options.steps or case.trl_steps
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        tasks = folder / "tasks.jsonl"
        write_tasks(case, tasks)
        common = {
            "name": case.name,
            "model": MODEL,
            "folder": str(model_folder()),
            "home": str(HOME),
            "tasks": str(tasks),
            "order": DataCursor(num_tasks=NUM_TASKS, seed=SEED).next(NUM_TASKS),
            "prompts": PROMPTS,
            "generations": GENERATIONS,
            "max_tokens": case.max_tokens,
            "turns": case.turns,
            "lora": case.lora,
            "learning_rate": case.learning_rate,
            "seed": SEED,
            "threads": THREADS,
            "trl_micro_batch": options.trl_micro_batch or case.trl_micro_batch,
            "settings": json.loads(options.settings),
        }

        def start(label: str, python: str | Path, script: str, reward: str) -> Worker:
            path = folder / f"{label.replace(' ', '-')}.json"
            path.write_text(json.dumps(common | {"reward": reward}), encoding="utf-8")
            return stack.enter_context(worker(label, [python, ROOT / "benchmarks" / script, path], folder))

        ours = {
            name: start(f"ours {name}", sys.executable, "grpo_ours.py", reward) for name, reward in case.rewards.items()
        }
        trl = start(f"trl {case.name}", trl_python, "grpo_trl.py", next(iter(case.rewards.values())))
        for round_number in range(rounds):
            began = time.monotonic()
            trl.step()
            for mine in ours.values():
                for _ in range(math.ceil(OUR_STEPS / rounds)):
                    mine.step()
            if time.monotonic() + (time.monotonic() - began) > until and round_number + 1 < rounds:
                print(f"  time is up after {round_number + 1} of {rounds} rounds", flush=True)
                break
        for mine in ours.values():
            while len(mine.steps) < OUR_STEPS:
                mine.step()
        return case_figures(case, ours, trl, common["trl_micro_batch"])


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
    command: list[str | Path] = [sys.executable, ROOT / "benchmarks" / "grpo_limits.py", MODEL, HOME, str(THREADS), "3"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=600, env=environment())
    found = json.loads(done.stdout)
    decode, update, parts = found["decode"], found["update"], found["products"]

    def rounded(values: Mapping[str, float], digits: int = 4) -> dict[str, float]:
        return {key: round(value, digits) for key, value in values.items()}

    return {
        "sgemm_peak_gflops": figure(
            found["peak"]["gflops"], "GFLOP/s", by=found["peak"]["by"], all=found["peak"]["all"]
        ),
        "memory_gb_per_s": figure(max(found["bandwidth"].values()), "GB/s", **rounded(found["bandwidth"], 1)),
        "gemm_onednn_vs_mkl": figure(
            parts["decode_s"]["mkl"] / parts["decode_s"]["onednn"],
            "x",
            rows=PROMPTS * GENERATIONS,
            seconds=rounded(parts["decode_s"]),
        ),
        "gemm_onednn_vs_mkl_update": figure(
            parts["update_s"]["mkl"] / parts["update_s"]["onednn"], "x", rows=2048, seconds=rounded(parts["update_s"])
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


def keep(figures: Mapping[str, Any]) -> None:
    """Writes the figures over those of the results file; after every case, so that none is lost."""
    path = RESULTS / "grpo.json"
    before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["figures"] if path.is_file() else {}
    write_report("grpo", {**before, **figures})


def main() -> None:
    names = ["limits", *(case.name for case in CASES)]
    parser = argparse.ArgumentParser(description="GRPO steps against TRL")
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument("--steps", type=int, help="measured steps of TRL in every case")
    parser.add_argument("--minutes", type=float, default=34.0, help="about how long all chosen cases may take")
    parser.add_argument("--trl-micro-batch", type=int, help="rows a forward of TRL; must divide 32")
    parser.add_argument("--settings", default="{}", help="fields of our training configuration, as JSON")
    options = parser.parse_args()
    until = time.monotonic() + options.minutes * 60
    make_model()
    trl_python = make_trl()
    if "limits" in options.cases:
        print("limits", flush=True)
        keep(limits())
    waiting = [case for case in CASES if case.name in options.cases]
    while waiting:
        case = waiting.pop(0)
        left = until - time.monotonic()
        share = left * case.weight / (case.weight + sum(other.weight for other in waiting))
        print(f"{case.name}: about {share / 60:.0f} minutes at most", flush=True)
        keep(run_case(case, trl_python, options, time.monotonic() + share))


if __name__ == "__main__":
    main()
