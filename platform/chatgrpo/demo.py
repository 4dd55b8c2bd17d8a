"""`chatgrpo demo`: the main job from end to end, on this machine, through the same doors that users take.

Starts the platform, submits a training job over HTTP, watches it, asks the base and the trained model the same unseen
questions through the chat API, and writes what it saw: `report.json` and `curve.png`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.live import Live
from rich.table import Table

from chatgrpo.client import Client
from chatgrpo.config import PlatformConfig, load_yaml
from chatgrpo.embedded import free_port, is_port_free, running_platform
from chatgrpo.environments.base import Task
from chatgrpo.environments.registry import build_source
from chatgrpo.errors import PlatformError
from chatgrpo.jobs.job import JobState
from chatgrpo.progress import JobProgress
from chatgrpo.training.config import TrainConfig

# Rewards of single steps are noisy; the first and the last few together are compared.
_WINDOW = 5
_NUM_QUESTIONS = 5
_MEMORY_EVERY_S = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a demo measured. Accuracies are greedy, on held-out questions; rewards are means of sampled replies over
    the first and the last five steps."""

    job_id: str
    accuracy_before: float
    accuracy_after: float
    num_questions: int
    reward_first: float
    reward_last: float
    seconds: float
    train_seconds: float
    peak_memory_gb: float
    steps: int

    @property
    def has_learnt(self) -> bool:
        """The rise exceeds what chance explains: 1.96 standard errors of the difference of two proportions."""
        a, b, n = self.accuracy_before, self.accuracy_after, self.num_questions
        return n > 0 and b - a > 1.96 * math.sqrt((a * (1 - a) + b * (1 - b)) / n)

    def line(self) -> str:
        return (
            f"demo: accuracy {self.accuracy_before:.3f} -> {self.accuracy_after:.3f} on {self.num_questions} held-out "
            f"questions, reward {self.reward_first:.3f} -> {self.reward_last:.3f}, {self.seconds:.0f} s"
        )


def run(platform: PlatformConfig, config_path: Path, console: Console) -> int:
    """Exit status: 0 only if the trained model is better beyond chance. Raises PlatformError for what went wrong."""
    started = time.monotonic()
    data = load_yaml(config_path)
    config = TrainConfig.model_validate(data)
    if not is_port_free(platform.host, platform.port):
        platform = platform.model_copy(update={"port": free_port()})
    folder = platform.home.expanduser().resolve() / "demo"
    with running_platform(platform, folder / "serve.log") as client:
        console.print(f"platform runs at http://{platform.host}:{platform.port}", style="dim", highlight=False)
        memory = _Memory()
        job = _train(client, data, console, memory)
        questions = _held_out(config, _NUM_QUESTIONS)
        console.print(_side_by_side(client, config, questions, job["job_id"]))
        memory.look()
        detail = client.job(job["job_id"])
    report = report_of(detail, seconds=time.monotonic() - started, peak_memory_gb=memory.peak_gb)
    folder.mkdir(parents=True, exist_ok=True)
    curve, written = folder / "curve.png", folder / "report.json"
    draw_curve(detail, curve)
    written.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    console.print(f"reward curve   {curve}", highlight=False)
    console.print(f"model, metrics {platform.runs_dir / report.job_id}", highlight=False)
    console.print("go on          make serve, then: .venv/bin/chatgrpo chat --model " + report.job_id, highlight=False)
    # Plain prints of rich wrap at the width of the terminal; these two lines are read by scripts.
    console.print(
        report.line(), soft_wrap=True, highlight=False, style="bold green" if report.has_learnt else "bold red"
    )
    console.print(str(written), soft_wrap=True, highlight=False)
    return 0 if report.has_learnt else 1


def report_of(detail: dict[str, Any], *, seconds: float, peak_memory_gb: float) -> Report:
    """From a finished job's view. Raises PlatformError when it was not evaluated before and after."""
    evaluations, rewards = detail["evaluations"], [point["reward"] for point in detail["reward_curve"]]
    if len(evaluations) < 2 or not rewards:
        raise PlatformError("the job was not evaluated before and after training; set num_eval_prompts")
    return Report(
        job_id=detail["job_id"],
        accuracy_before=evaluations[0]["eval_accuracy"],
        accuracy_after=evaluations[-1]["eval_accuracy"],
        num_questions=int(evaluations[-1]["eval_tasks"]),
        reward_first=_mean(rewards[:_WINDOW]),
        reward_last=_mean(rewards[-_WINDOW:]),
        seconds=round(seconds, 1),
        train_seconds=round(_seconds_between(detail["started_at"], detail["ended_at"]), 1),
        peak_memory_gb=round(peak_memory_gb, 2),
        steps=detail["progress"]["current_step"],
    )


def draw_curve(detail: dict[str, Any], path: Path) -> None:
    """Sampled reward of every step, and held-out accuracy where it was measured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    steps = [point["step"] for point in detail["reward_curve"]]
    rewards = [point["reward"] for point in detail["reward_curve"]]
    axes.plot(steps, rewards, color="#9db4c0", linewidth=1, label="reward of sampled replies")
    smooth = [_mean(rewards[max(0, i - _WINDOW + 1) : i + 1]) for i in range(len(rewards))]
    axes.plot(steps, smooth, color="#1b6ca8", linewidth=2, label=f"mean of the last {_WINDOW} steps")
    evaluations = detail["evaluations"]
    axes.plot(
        [e["step"] for e in evaluations],
        [e["eval_accuracy"] for e in evaluations],
        color="#d1495b",
        marker="o",
        linewidth=1.5,
        label=f"held-out accuracy, greedy (n = {int(evaluations[-1]['eval_tasks'])})",
    )
    axes.set(xlabel="step", ylabel="share of right answers", ylim=(0, 1), title=detail["experiment_name"])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


class _Memory:
    """The most memory that the platform's processes held at any look, in GB."""

    def __init__(self) -> None:
        self.peak_gb = 0.0
        self._next = 0.0

    def look(self) -> None:
        # To count shared pages the kernel walks all pages of a process and holds up its allocations meanwhile.
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _MEMORY_EVERY_S
        total = 0
        for process in psutil.Process().children(recursive=True):
            # Shared pages (the object store, libraries) are counted once: each process by its share.
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_full_info().pss
        self.peak_gb = max(self.peak_gb, total / 1e9)


def _train(client: Client, config: dict[str, Any], console: Console, memory: _Memory) -> dict[str, Any]:
    job = client.train(config)
    console.print(f"job {job['job_id']} ({config['experiment_name']}) is {job['status']}", style="dim", highlight=False)
    shown = JobProgress()

    def on_progress(view: dict[str, Any]) -> None:
        shown.update(view)
        memory.look()

    with Live(shown, console=console, refresh_per_second=4):
        view = client.wait(job["job_id"], on_progress=on_progress)
    if view["status"] != JobState.SUCCEEDED:
        raise PlatformError(f"the job {view['status']}: {view['error']}\n{client.logs(job['job_id'], tail=20)}")
    return view


def _held_out(config: TrainConfig, count: int) -> list[Task]:
    source = build_source(config.environment, split="eval", seed=config.seed, num_eval=config.num_eval_prompts)
    return [source.task(i) for i in range(min(count, len(source)))]


def _side_by_side(client: Client, config: TrainConfig, questions: Sequence[Task], job_id: str) -> Table:
    table = Table("unseen question", "answer", config.model, f"trained ({job_id[-6:]})", show_lines=True)
    options = {"temperature": 0.0, "max_tokens": config.max_completion_length}
    asked = [(task, task.messages[-1].content) for task in questions]
    replies = [
        [client.chat(text, model=model, **options)["response"] for _, text in asked] for model in (config.model, job_id)
    ]
    for (task, text), base, trained in zip(asked, *replies, strict=True):
        table.add_row(text, task.answer or "", base.strip(), trained.strip())
    return table


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)


def _seconds_between(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
