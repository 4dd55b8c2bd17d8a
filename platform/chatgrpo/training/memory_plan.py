"""How much memory one worker of a run will hold at most, said before it starts.

A plan is an upper bound for episodes that reach their length limits; natural lengths stay below it. It covers the fast
path in float32 (see `TrainConfig.fast_path`); `make bench NAME=grpo` compares it with what a
process held (`planned_memory_error`). Bytes throughout; letters as in `inference.llama_weights`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from chatgrpo.inference.cache_size import rounded
from chatgrpo.training.config import TrainConfig

# Python, torch, transformers and peft with their threads, measured after imports on Linux x86-64.
_PROCESS = 420_000_000
_FLOAT = 4
# Tensors of the MLP's width that one layer's backward holds at once, and rows of logits in the head's.
_BACKWARD_WIDTHS = 6
_HEAD_ROWS = 2 * 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """From a model's `config.json`. Raises KeyError for a model that is not Llama-shaped."""
        heads = int(config["num_attention_heads"])
        return cls(
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_layers=int(config["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
        )

    @property
    def qkv_width(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def layer_parameters(self) -> int:
        """Of the matrices of all layers."""
        attention = self.hidden_size * (self.qkv_width + self.num_heads * self.head_dim)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def parameters(self) -> int:
        return self.layer_parameters + self.vocabulary * self.hidden_size * (1 if self.tied else 2)

    def lora_parameters(self, rank: int) -> int:
        """With adapters on all linear layers of the decoder."""
        e, f, q = self.hidden_size, self.intermediate_size, self.num_heads * self.head_dim
        kv = self.num_kv_heads * self.head_dim
        return self.num_layers * rank * ((e + q) + 2 * (e + kv) + (q + e) + 3 * (e + f))

    @property
    def tape_bytes_per_token(self) -> int:
        width = 2 * self.hidden_size + self.qkv_width + 2 * self.intermediate_size
        return _FLOAT * (self.num_layers * width + self.hidden_size)

    @property
    def cache_bytes_per_token(self) -> int:
        return _FLOAT * self.num_layers * 2 * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What is held all the time, and what a rollout and an update hold beside it."""

    process: int
    weights: int
    # What the model speaks with, adapters merged; the update does without it, unless it computes activations again.
    packed_weights: int
    packed_in_update: int
    optimizer: int
    activations: int
    cache: int
    gradients: int
    workspace: int

    @property
    def rollout(self) -> int:
        return self._always + self.packed_weights + self.activations + self.cache

    @property
    def update(self) -> int:
        return self._always + self.packed_in_update + self.activations + self.gradients + self.workspace

    @property
    def peak(self) -> int:
        return max(self.rollout, self.update)

    @property
    def _always(self) -> int:
        return self.process + self.weights + self.optimizer


def plan(config: TrainConfig, shape: ModelShape) -> MemoryPlan:
    """Of one worker; prompts count with `max_prompt_length`, replies with `max_completion_length`, one turn each."""
    prompts = config.prompts_per_step // config.num_workers
    rows = prompts * config.num_generations
    packed = prompts * config.max_prompt_length + rows * config.max_completion_length
    trainable = shape.lora_parameters(config.lora.r) if config.lora else shape.parameters
    micro = min(packed, config.micro_batch_tokens)
    kept = min(packed, int(config.tape_gb * 1e9 / shape.tape_bytes_per_token))
    # What is not kept is computed again, one micro-batch at a time.
    tape_tokens = kept if kept == packed else kept + micro
    moments = 2 if config.optimizer == "adamw" else 0
    packed_weights = _FLOAT * (shape.layer_parameters + shape.vocabulary * shape.hidden_size)
    return MemoryPlan(
        process=_PROCESS,
        weights=_FLOAT * (shape.parameters + (trainable if config.lora else 0)),
        packed_weights=packed_weights,
        packed_in_update=packed_weights if kept < packed or config.num_iterations > 1 else 0,
        optimizer=_FLOAT * moments * trainable,
        activations=tape_tokens * shape.tape_bytes_per_token,
        # vLLM holds weights and cache of its own, of the size that `vllm` says, in another process.
        cache=_cache_bytes(config, shape, rows) if config.engine == "torch" else 0,
        gradients=_FLOAT * trainable,
        workspace=_FLOAT
        * (
            micro * (_BACKWARD_WIDTHS * shape.intermediate_size + 4 * shape.hidden_size)
            + _HEAD_ROWS * shape.vocabulary
            # The head's gradient and one chunk's share of it.
            + (0 if config.lora else 2 * shape.vocabulary * shape.hidden_size)
        ),
    )


def _cache_bytes(config: TrainConfig, shape: ModelShape, rows: int) -> int:
    length = config.max_prompt_length + config.max_completion_length + 1
    num_rows, length = rounded(min(rows, config.rollout_batch_size), length)
    return num_rows * length * shape.cache_bytes_per_token
