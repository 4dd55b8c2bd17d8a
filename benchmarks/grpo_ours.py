"""Worker of the GRPO benchmark: the platform's own training loop, as a job runs it, in this process."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.grpo_worker import Turns, letters, spread
from chatgrpo.environments.base import Task
from chatgrpo.rewards.registry import reward
from chatgrpo.rollouts.episode import Episode
from chatgrpo.training.config import TrainConfig
from chatgrpo.training.loop import Place, train

ENDLESS = 1000


@reward("spread")
def spread_reward(task: Task, episode: Episode) -> float:
    return spread(episode.reply)


@reward("letters")
def letters_reward(task: Task, episode: Episode) -> float:
    return letters(episode.reply, str(task.answer))


def config(case: Mapping[str, Any]) -> TrainConfig:
    files: dict[str, Any] = {"type": "dataset", "paths": [case["tasks"]]}
    if case["turns"] > 1:
        files = {"type": "dialogue", "paths": [case["tasks"]], "max_turns": case["turns"]}
    values = {
        "experiment_name": case["name"],
        "model": case["model"],
        "environment": files,
        "rewards": [{"type": "numeric"} if case["reward"] == "numeric" else {"type": "plugin", "name": case["reward"]}],
        "seed": case["seed"],
        "prompts_per_step": case["prompts"],
        "num_generations": case["generations"],
        "max_prompt_length": 1024,
        "max_completion_length": case["max_tokens"],
        "temperature": 1.0,
        "loss_type": "dapo",
        "beta": 0.0,
        "max_steps": ENDLESS,
        "learning_rate": case["learning_rate"],
        "num_eval_prompts": 0,
        "save_steps": None,
        "lora": {"r": 16, "alpha": 32} if case["lora"] else None,
    }
    return TrainConfig.model_validate(values | case["settings"])


def main() -> None:
    turns = Turns()
    torch.set_num_threads(turns.case["threads"])

    def report(metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        goes_on = turns.done(
            rollout_s=metrics["time/rollout_s"],
            update_s=metrics["time/update_s"],
            sampled_tokens=metrics["rollout/sampled_tokens"],
            turns=metrics["rollout/num_turns"],
            rows_trained=metrics["rows_trained"],
            reward=metrics["reward"],
        )
        if not goes_on:
            raise SystemExit(0)

    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        run_dir.mkdir()
        train(config(turns.case), Place(run_id="bench", home=Path(turns.case["home"]), run_dir=run_dir), report)


if __name__ == "__main__":
    main()
