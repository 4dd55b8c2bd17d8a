"""A value that the chosen algorithm would not read is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from chatgrpo.training.config import TrainConfig


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"loss_type": "sapo", "delta": 3.0}, "delta: loss_type sapo does not read it"),
        ({"loss_type": "sapo", "epsilon_high": 0.3}, "epsilon_high: loss_type sapo"),
        ({"loss_type": "cispo", "epsilon": 0.1}, "epsilon: loss_type cispo"),
        ({"loss_type": "cispo", "epsilon_high": 0.28}, "cispo caps the ratio itself"),
        ({"loss_type": "cispo", "importance_sampling_level": "sequence"}, "importance_sampling_level"),
        ({"loss_type": "dapo", "sapo_temperature_neg": 2.0}, "sapo_temperature_neg: loss_type dapo"),
        ({"delta": 1.25, "epsilon_high": 0.28}, "delta: 1.25 is not above 1.28"),
        ({"advantage_estimator": "rloo", "scale_rewards": "batch"}, "scale_rewards: rloo"),
        ({"advantage_estimator": "gdpo", "scale_rewards": "none"}, "scale_rewards: gdpo"),
        ({"advantage_estimator": "gdpo", "overlong_buffer": 16}, "overlong_buffer: gdpo"),
        ({"vllm": {"enforce_eager": True}}, "vllm: engine torch does not read it"),
        ({"engine": "vllm", "reuse_activations_gb": 1.0}, "reuse_activations_gb: vLLM leaves no activations"),
        ({"engine": "vllm", "deepspeed": {}}, "deepspeed: its weights do not reach vLLM"),
        ({"engine": "vllm", "top_k": 5, "temperature": 0.7}, "temperature: 0.7, but with top_p or top_k"),
        ({"engine": "vllm", "vllm": {"context_window": 1024}}, "vllm.context_window: 1024 is shorter"),
    ],
)
def test_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig(**kwargs)


def test_a_written_config_reads_back() -> None:
    for loss_type in ("grpo", "cispo", "sapo", "gspo"):
        config = TrainConfig(loss_type=loss_type)
        assert TrainConfig(**config.model_dump()) == config


def test_what_the_names_resolve_to() -> None:
    assert TrainConfig(loss_type="gspo").ratio_level == "sequence"
    assert TrainConfig(loss_type="dapo").ratio_level == "token"
    assert TrainConfig(epsilon=0.1).clip_range_high == 0.1
    assert TrainConfig(epsilon_high=0.28).clip_range_high == 0.28
    assert TrainConfig(loss_type="cispo").cispo_cap == 5.0
