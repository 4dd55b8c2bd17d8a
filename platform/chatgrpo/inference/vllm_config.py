"""Settings of the vLLM engine, for training and for chat. Imports neither torch nor vllm."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class VllmConfig(BaseModel):
    """How vLLM is set up where `engine` is `vllm`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that one copy of the model is split over.")
    gpu_memory_share: float = Field(
        0.4, gt=0, lt=1, description="Share of each GPU's memory for weights and KV cache; the learner needs the rest."
    )
    kv_cache_gb: float | None = Field(
        None, gt=0, description="Size of the KV cache; empty: what gpu_memory_share leaves, on a CPU what vLLM chooses."
    )
    context_window: int | None = Field(
        None, ge=16, description="Tokens of prompt and reply together; empty: the model's own window."
    )
    max_lora_rank: int = Field(
        64, ge=1, le=256, description="Largest rank of the adapters that chat serves; training knows its own."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of weights and KV cache; auto: that of the model's files."
    )
    enforce_eager: bool = Field(False, description="No compilation and no CUDA graphs: starts sooner, decodes slower.")
