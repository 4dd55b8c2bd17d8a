"""The processes of the GRPO benchmark: TRL's environment, the model's folder, workers that are asked for steps."""

from __future__ import annotations

import json
import os
import select
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.grpo_cases import NUM_TASKS, Case, write_tasks
from chatgrpo.rollouts.cursor import DataCursor
from chatgrpo.training.allocator import allocator_environment

ROOT = Path(__file__).parent.parent
TRL = "1.16.0"
MODEL = "smollm2-135m-instruct"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatgrpo-bench"
HOME = CACHE / "home"
THREADS = os.cpu_count() or 1
STEP_TIMEOUT_S = 900.0


def model_folder(name: str = MODEL) -> Path:
    return HOME / "models" / name


def make_model(name: str = MODEL) -> None:
    """In a process of its own: the driver stays small."""
    if (model_folder(name) / "config.json").is_file():
        return
    print("preparing the model once", flush=True)
    code = (
        "import sys; from pathlib import Path; from chatgrpo.inference.loading import load; "
        "load(sys.argv[1], models_dir=Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, name, HOME / "models"], check=True, timeout=600)


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
    """The same for both sides: idle threads sleep, one thread a core, the allocator as our jobs have it."""
    return {
        **os.environ,
        **allocator_environment(),
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

    def step(self) -> None:
        """One more step."""
        self.steps.append(self._asked())

    def settle(self) -> None:
        """A step that is not measured."""
        self._asked()

    def _asked(self) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(b"step\n")
        self._process.stdin.flush()
        return self._read()

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
        told = " ".join(f"{k} {v / 1e9:.2f} GB" if k == "peak_bytes" else f"{k} {v:.4g}" for k, v in figures.items())
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


# What a worker reads


def write_setup(
    case: Case, folder: Path, *, seed: int, micro_batch: int, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Writes the tasks; returns what both sides' workers are told. `order`: in which ours will draw the tasks."""
    tasks = folder / "tasks.jsonl"
    order = DataCursor(num_tasks=NUM_TASKS, seed=seed).next(case.num_steps * case.prompts)
    write_tasks(case, tasks, model_folder(case.model) / "tokenizer.json", warm_up=order[: case.prompts])
    return {
        "name": case.name,
        "model": case.model,
        "folder": str(model_folder(case.model)),
        "home": str(HOME),
        "tasks": str(tasks),
        "order": order,
        "prompts": case.prompts,
        "generations": case.generations,
        "max_tokens": case.max_tokens,
        "turns": case.turns,
        "lora": case.lora,
        "learning_rate": case.learning_rate,
        "seed": seed,
        "threads": THREADS,
        "trl_micro_batch": micro_batch,
        "settings": settings or {},
    }


def ours_worker(setup: dict[str, Any], label: str, reward: str) -> AbstractContextManager[Worker]:
    return _worker(setup, label, reward, [sys.executable, ROOT / "benchmarks" / "grpo_ours.py"])


def trl_worker(setup: dict[str, Any], label: str, reward: str, python: Path) -> AbstractContextManager[Worker]:
    return _worker(setup, label, reward, [python, ROOT / "benchmarks" / "grpo_trl.py"])


def _worker(
    setup: dict[str, Any], label: str, reward: str, command: list[str | Path]
) -> AbstractContextManager[Worker]:
    folder = Path(setup["tasks"]).parent
    path = folder / f"{label.replace(' ', '-')}.json"
    path.write_text(json.dumps({**setup, "reward": reward}), encoding="utf-8")
    return worker(label, [*command, path], folder)
