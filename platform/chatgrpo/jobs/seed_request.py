"""The short request body of `POST /api/v2/train`: a few well-known names, turned into a TrainConfig.

    {"experiment_name": "a", "agent_type": "MultiTurnAgent", "model_config": {"model_type": "llama2", "size": "7b"},
     "training_data": "/path/to/data", "num_epochs": 50, "cpu_cores": 8, "memory_gb": 32, "gpu_count": 4}

Every field is honoured or refused by name. What an absent resource field means is the platform's choice: one worker,
one logical CPU, a GPU if the cluster has any, memory not reserved.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from chatgrpo.config import Strict
from chatgrpo.errors import InvalidRequest
from chatgrpo.training.config import TrainConfig

M = TypeVar("M", bound=Strict)

GROUP_SIZE = 8
"""Episodes per task; `batch_size` counts completions and is a multiple of it."""

EVAL_STEPS = 10
"""Steps between held-out evaluations when early stopping is on."""


class SeedTrainRequest(Strict):
    """The short request body. Defaults as documented; see the module for absent resource fields."""

    experiment_name: str = Field("grpo", description="For people.")
    agent_type: Literal["MultiTurnAgent", "SingleTurnAgent"] = Field("MultiTurnAgent", description="Kind of task.")
    model: dict[str, Any] = Field(
        default_factory=dict, alias="model_config", description='{"model_type", "size"} or {"model": name}.'
    )
    training_data: str | list[str] = Field(description="Files, folders, or reasoning_gym:<data set>.")
    num_epochs: int = Field(10, ge=1, description="Passes over the tasks.")
    batch_size: int = Field(32, ge=1, description="Completions per step; a multiple of 8.")
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="torch optimizer.")
    scheduler: Literal["constant", "linear", "cosine"] = Field("cosine", description="Learning rate after warm-up.")
    grpo_epsilon: float = Field(0.2, gt=0, description="Clip range.")
    grpo_value_loss_coef: float = Field(0.5, description="GRPO has no value loss: only the default is accepted.")
    grpo_entropy_coef: float = Field(0.01, ge=0, description="Weight of the entropy bonus.")
    cpu_cores: float = Field(2, gt=0, description="Logical CPUs of the whole job.")
    memory_gb: float = Field(8, gt=0, description="Memory of the whole job.")
    gpu_count: int = Field(1, ge=0, description="GPUs of the whole job: one worker each; 0: train on CPU.")
    max_runtime_hours: float | None = Field(None, gt=0, description="The run is stopped after this long.")
    enable_checkpointing: bool = Field(True, description="Checkpoints while training.")
    enable_early_stopping: bool = Field(True, description="Ends when the held-out reward no longer rises.")
    enable_wandb: bool = Field(True, description="Weights & Biases; absent: on if the package is installed.")
    priority: int = Field(1, ge=0, le=100, description="Higher starts earlier.")

    def to_train_config(self) -> TrainConfig:
        """Raises InvalidRequest naming the field that cannot be honoured."""
        self._check()
        workers = max(1, self.gpu_count) if self._given("gpu_count") else 1
        fields: dict[str, Any] = {
            "experiment_name": self.experiment_name,
            "environment": self._environment(),
            "num_epochs": self.num_epochs,
            "num_generations": GROUP_SIZE,
            "prompts_per_step": self.batch_size // GROUP_SIZE,
            "learning_rate": self.learning_rate,
            "optimizer": self.optimizer,
            "lr_scheduler_type": self.scheduler,
            "epsilon": self.grpo_epsilon,
            "entropy_coef": self.grpo_entropy_coef,
            "lora": {},
            "num_workers": workers,
            "resources": self._resources(workers),
            "report_to": ["wandb"] if self.wandb_wanted else [],
            "max_runtime_hours": self.max_runtime_hours,
            "priority": self.priority,
        }
        if self.model:
            fields["model"] = self._model_name()
        if not self.enable_checkpointing:
            fields |= {"save_steps": None, "load_best_model_at_end": False}
        if self.enable_early_stopping:
            fields |= {"early_stopping": {}, "eval_steps": EVAL_STEPS, "num_eval_prompts": 64}
        return validate(TrainConfig, fields)

    @property
    def wandb_wanted(self) -> bool:
        return self.enable_wandb and (self._given("enable_wandb") or _importable("wandb"))

    def _given(self, name: str) -> bool:
        return name in self.model_fields_set

    def _check(self) -> None:
        if self.batch_size % GROUP_SIZE:
            near = max(1, round(self.batch_size / GROUP_SIZE)) * GROUP_SIZE
            raise InvalidRequest(
                f"{self.batch_size} is not a multiple of the {GROUP_SIZE} completions per task; write {near}",
                "batch_size",
            )
        if self.grpo_value_loss_coef != 0.5:
            raise InvalidRequest(
                f"{self.grpo_value_loss_coef} cannot be honoured: GRPO trains no value function; leave the field out",
                "grpo_value_loss_coef",
            )
        if self._given("gpu_count") and self.gpu_count > 1 and (self.batch_size // GROUP_SIZE) % self.gpu_count:
            raise InvalidRequest(
                f"{self.batch_size} gives {self.batch_size // GROUP_SIZE} tasks a step, which {self.gpu_count} GPUs "
                f"cannot share equally; write {GROUP_SIZE * self.gpu_count}",
                "batch_size",
            )

    def _model_name(self) -> str:
        from chatgrpo.inference.models import resolve_alias

        unknown = set(self.model) - {"model", "model_type", "size"}
        if unknown:
            raise InvalidRequest(
                f"unknown key {sorted(unknown)[0]!r}; known: model, or model_type and size", "model_config"
            )
        if "model" in self.model:
            return str(self.model["model"])
        if "model_type" not in self.model:
            raise InvalidRequest("give model, or model_type and size", "model_config")
        size = self.model.get("size")
        return resolve_alias(str(self.model["model_type"]), None if size is None else str(size))

    def _environment(self) -> dict[str, Any]:
        data = [self.training_data] if isinstance(self.training_data, str) else self.training_data
        if not data or not all(data):
            raise InvalidRequest("empty; give files, folders, or reasoning_gym:<data set>", "training_data")
        names = [name for name in map(_reasoning_gym_name, data) if name]
        if not names:
            kind = "dialogue" if self.agent_type == "MultiTurnAgent" else "dataset"
            return {"type": kind, "paths": data}
        if len(data) > 1:
            raise InvalidRequest("one reasoning_gym data set at a time; or list files only", "training_data")
        tasks = {"type": "reasoning_gym", "dataset": names[0]}
        # Its questions take one reply; an agent that explicitly wants turns practises them with a tool in reach.
        if self._given("agent_type") and self.agent_type == "MultiTurnAgent":
            return {"type": "tools", "tools": ["calculator"], "tasks": tasks}
        return tasks

    def _resources(self, workers: int) -> dict[str, Any]:
        resources: dict[str, Any] = {}
        if self._given("cpu_cores"):
            resources["cpus_per_worker"] = self.cpu_cores / workers
        if self._given("memory_gb"):
            resources["memory_gb_per_worker"] = self.memory_gb / workers
        if self._given("gpu_count"):
            resources["gpus_per_worker"] = 1.0 if self.gpu_count else 0.0
        return resources


_OWN_NAMES = {field.alias or name for name, field in SeedTrainRequest.model_fields.items()} - set(
    TrainConfig.model_fields
)


def is_seed_request(body: Mapping[str, Any]) -> bool:
    """Whether a body uses names that only the short form has."""
    return bool(_OWN_NAMES & set(body))


def parse_train_request(body: Mapping[str, Any]) -> TrainConfig:
    """The TrainConfig that a request body asks for, in the short form or in full. Raises InvalidRequest."""
    if is_seed_request(body):
        return validate(SeedTrainRequest, body).to_train_config()
    return validate(TrainConfig, body)


def validate(model: type[M], data: Mapping[str, Any]) -> M:
    """`model` from `data`; the first problem as InvalidRequest with field, value seen and value wanted."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        seen = "" if first["type"] in {"missing", "value_error"} else f", got {str(first['input'])[:80]!r}"
        raise InvalidRequest(f"{first['msg']}{seen}", path) from error


def _reasoning_gym_name(source: str) -> str | None:
    prefix, separator, name = source.partition(":")
    return name if separator and prefix in {"reasoning_gym", "reasoning-gym"} else None


def _importable(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
