"""The oldest request body, of `POST /api/train`: prompts and little else, turned into a TrainConfig.

    {"prompts": ["Say hello.", "Name a colour."], "num_iterations": 5, "parallel_batch_size": 16}

An iteration is a step in which every prompt is played, GROUP_SIZE times. Every field is honoured or refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from chatgrpo.config import Strict
from chatgrpo.errors import InvalidRequest
from chatgrpo.jobs.seed_request import GROUP_SIZE, validate
from chatgrpo.rewards.config import RewardConfig
from chatgrpo.training.config import Resources, TrainConfig

# Bare prompts have no answer to compare with. What can be said of any reply is whether it came to its end: full marks
# up to the first length, none for a reply that was cut off at the second.
ENOUGH_TOKENS, MAX_TOKENS = 128, 256


class DistributedConfig(Resources):
    """Workers of the run, and what each reserves."""

    num_workers: int = Field(1, ge=1, description="Ray Train workers; divides the number of different prompts.")
    min_workers: int | None = Field(
        None, ge=1, description="Fewest workers it may run with when room is short; empty: num_workers."
    )


class PromptsRequest(Strict):
    """Training on bare prompts."""

    prompts: list[str] = Field(
        min_length=1, max_length=1024, description="Asked once an iteration; repeats count once."
    )
    strategy: Literal["computational"] = Field("computational", description="Replies are sampled and scored.")
    num_iterations: int = Field(1, ge=1, description="Training steps; each plays every prompt.")
    parallel_batch_size: int | None = Field(
        None, ge=1, description="Replies that are written at once on one worker; empty: the platform's choice."
    )
    use_neural_rewards: bool = Field(
        False, description="A model scores replies: `rewards` must then have one of type judge or plugin."
    )
    use_ruler_rewards: bool = Field(
        False, description="A judge grades replies: `rewards` must then have one of type judge."
    )
    distributed_config: DistributedConfig | None = Field(None, description="Empty: one worker.")
    rewards: list[RewardConfig] | None = Field(
        None, min_length=1, description="What replies are scored by; empty: whether they come to their end."
    )

    def to_train_config(self, *, model: str) -> TrainConfig:
        """`model`: what is trained. Raises InvalidRequest naming the field that cannot be honoured."""
        prompts = self._different_prompts()
        self._check_rewards()
        workers = self._workers(len(prompts))
        fields: dict[str, Any] = {
            "experiment_name": "prompts",
            "model": model,
            "environment": {"type": "inline", "prompts": prompts},
            "rewards": self.rewards or [_comes_to_its_end()],
            "prompts_per_step": len(prompts),
            "num_generations": GROUP_SIZE,
            "max_completion_length": MAX_TOKENS,
            "max_steps": self.num_iterations,
            "learning_rate": 1e-4,
            "lora": {},
            # All prompts are trained on: none is left to evaluate with.
            "num_eval_prompts": 0,
            "num_workers": workers.num_workers,
            "min_workers": workers.min_workers,
            "resources": workers.model_dump(exclude={"num_workers", "min_workers"}),
        }
        if self.parallel_batch_size is not None:
            fields["rollout_batch_size"] = self.parallel_batch_size
        return validate(TrainConfig, fields)

    def _different_prompts(self) -> list[str]:
        for number, prompt in enumerate(self.prompts):
            if not prompt.strip():
                raise InvalidRequest("is blank; write a question or leave it out", f"prompts[{number}]")
        return list(dict.fromkeys(self.prompts))

    def _check_rewards(self) -> None:
        given = {reward.type for reward in self.rewards or ()}
        for field, types in (("use_ruler_rewards", {"judge"}), ("use_neural_rewards", {"judge", "plugin"})):
            if getattr(self, field) and not types & given:
                raise InvalidRequest(
                    "there is no model to score with; give one in the field rewards, as in "
                    '[{"type": "judge", "base_url": "http://127.0.0.1:8002/v1", "model": "..."}], or write false',
                    field,
                )

    def _workers(self, num_prompts: int) -> DistributedConfig:
        workers = self.distributed_config or DistributedConfig()
        if num_prompts % workers.num_workers:
            raise InvalidRequest(
                f"{workers.num_workers} workers cannot share {num_prompts} different prompts equally; write a number "
                "that divides it",
                "distributed_config.num_workers",
            )
        least = workers.min_workers
        if least and (least > workers.num_workers or num_prompts % least):
            raise InvalidRequest(
                f"{least} must be at most num_workers ({workers.num_workers}) and divide the {num_prompts} different "
                "prompts",
                "distributed_config.min_workers",
            )
        return workers


def is_prompts_request(body: Mapping[str, Any]) -> bool:
    """Whether a body uses names that only this form has."""
    return bool((set(PromptsRequest.model_fields) - set(TrainConfig.model_fields)) & set(body))


def _comes_to_its_end() -> dict[str, Any]:
    return {"type": "length", "target_tokens": ENOUGH_TOKENS, "max_tokens": MAX_TOKENS}
