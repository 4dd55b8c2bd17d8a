"""The plan's arithmetic by hand, and its parts against what the fast path really allocates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chatgrpo.inference.activation_tape import ActivationTape
from chatgrpo.inference.kv_cache import KVCache
from chatgrpo.inference.llama_weights import LlamaWeights
from chatgrpo.inference.loading import LoadedModel, model_config
from chatgrpo.training.config import LoraConfig, TrainConfig
from chatgrpo.training.memory_plan import ModelShape, plan
from chatgrpo.training.policy import Policy


@pytest.fixture
def shape(models_dir: Path) -> ModelShape:
    return ModelShape.from_config(model_config("tiny", models_dir))


def test_counts_are_those_of_the_model(tiny: LoadedModel, shape: ModelShape) -> None:
    norms = sum(p.numel() for name, p in tiny.model.named_parameters() if "norm" in name)
    assert shape.parameters == sum(p.numel() for p in tiny.model.parameters()) - norms
    weights = LlamaWeights.of(tiny.model)
    assert weights is not None
    assert shape.tape_bytes_per_token == ActivationTape.bytes_per_token(weights)
    cache = KVCache(shape.num_layers, torch.float32, torch.device("cpu"))
    cache.reserve(8, 64)
    held = sum(
        x.numel() * x.element_size() * shape.num_layers for x in cache.layer(0, shape.num_kv_heads, shape.head_dim)
    )
    assert held == 8 * 64 * shape.cache_bytes_per_token


def test_adapters_are_counted(tiny: LoadedModel, shape: ModelShape) -> None:
    policy = Policy(tiny.model, lora=LoraConfig(r=4))
    in_layers = sum(p.numel() for name, p in policy.trainable() if "lm_head" not in name)
    assert shape.lora_parameters(4) == in_layers


def test_a_run_by_hand(shape: ModelShape) -> None:
    config = TrainConfig(
        prompts_per_step=4, num_generations=8, max_prompt_length=60, max_completion_length=64, rollout_batch_size=32
    )
    found = plan(config, shape)
    tokens = 4 * 60 + 32 * 64
    assert found.activations == tokens * shape.tape_bytes_per_token
    assert found.cache == 32 * 128 * shape.cache_bytes_per_token
    assert found.gradients * 2 == found.optimizer == 2 * found.weights
    assert found.packed_in_update == 0
    assert found.peak == max(found.rollout, found.update) > found.weights + found.optimizer


def test_what_is_spoken_with_is_packed_for_the_rollout(shape: ModelShape) -> None:
    found = plan(TrainConfig(lora=LoraConfig(r=4)), shape)
    assert found.packed_weights == 4 * (shape.layer_parameters + shape.vocabulary * shape.hidden_size)
    assert plan(TrainConfig(num_iterations=2), shape).packed_in_update == found.packed_weights
    assert found.optimizer == 8 * shape.lora_parameters(4)


def test_what_the_tape_may_not_hold_is_computed_in_micro_batches(shape: ModelShape) -> None:
    config = TrainConfig(reuse_activations_gb=0, micro_batch_tokens=500, max_prompt_length=400)
    assert plan(config, shape).activations == 500 * shape.tape_bytes_per_token
