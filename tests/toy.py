"""The smallest training configuration that learns something: the tiny model on the toy tool. Imports nothing heavy."""

from __future__ import annotations

from typing import Any

TOY: dict[str, Any] = {
    "model": "tiny",
    "environment": {"type": "plugin", "name": "toy_tool"},
    "rewards": [{"type": "environment"}],
    "prompts_per_step": 2,
    "num_generations": 4,
    "max_prompt_length": 32,
    "max_completion_length": 8,
    "max_episode_length": 64,
    "learning_rate": 1e-3,
    "max_steps": 4,
    "num_eval_prompts": 4,
    "save_steps": 2,
}
