"""From a point of the search space to a training configuration, and the check that every point can be one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from chatgrpo.errors import InvalidRequest
from chatgrpo.jobs.sweeps.config import Pbt, SweepConfig
from chatgrpo.overrides import apply_overrides
from chatgrpo.training.cohort_rules import check_cohort
from chatgrpo.training.config import TrainConfig

# What decides where a trial runs and who may see it is the sweep's business.
_FIXED = (
    "num_workers",
    "min_workers",
    "resources",
    "max_staleness",
    "rollout_workers",
    "rollout_resources",
    "priority",
    "experiment_name",
    "deepspeed",
    "max_runtime_hours",
)

# What a policy may be trained with from any step on: nothing of it is in a checkpoint, or shapes one.
MUTABLE = frozenset(
    {
        "beta",
        "delta",
        "entropy_coef",
        "epsilon",
        "epsilon_high",
        "learning_rate",
        "max_grad_norm",
        "off_policy_mask_threshold",
        "overlong_buffer",
        "sampler_correction_cap",
        "sampler_correction_floor",
        "sapo_temperature_neg",
        "sapo_temperature_pos",
        "temperature",
        "top_k",
        "top_p",
    }
)


def trial_config(train: Mapping[str, Any], params: Mapping[str, Any]) -> TrainConfig:
    """`train` (a TrainConfig as JSON) with `params` (dotted names) in it. Raises InvalidRequest naming the field.

    >>> trial_config({"model": "tiny"}, {"lora.r": 8}).lora.r
    8
    """
    settings = [f"{name}={json.dumps(value)}" for name, value in params.items()]
    try:
        return TrainConfig.model_validate(apply_overrides(train, settings, TrainConfig))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or ", ".join(params)
        raise InvalidRequest(f"{first['msg']} (with {dict(params)})", where) from error


def check_space(sweep: SweepConfig) -> None:
    """Tries the bounds of each dimension, the others as in `train`. Raises InvalidRequest naming the dimension."""
    train = sweep.train.model_dump(mode="json")
    for name, dimension in sweep.space.items():
        if name.split(".")[0] in _FIXED:
            raise InvalidRequest("is the same for all trials; set it under `train`", f"space.{name}")
        known = name.split(".")[0] in TrainConfig.model_fields
        if isinstance(sweep.scheduler, Pbt) and known and name not in MUTABLE:
            raise InvalidRequest(
                f"pbt changes values while a policy trains, and this one cannot; use {', '.join(sorted(MUTABLE))}",
                f"space.{name}",
            )
        for value in dimension.examples():
            try:
                trial = trial_config(train, {name: value})
                if sweep.share_base:
                    check_cohort([sweep.train, trial])
            except InvalidRequest as error:
                raise InvalidRequest(f"{value!r} is refused: {error}", f"space.{name}") from error
