"""Which device and which number type a rank computes with."""

from __future__ import annotations

import os
from typing import Literal

import torch


def device_of_rank() -> str:
    """The rank's GPU if the process can see any (Ray shows each worker its own), else the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def compute_dtype(wanted: Literal["auto", "float32", "bfloat16"], device: str) -> torch.dtype:
    """`auto` is bfloat16 where the GPU has it and float32 elsewhere: CPUs without bfloat16 instructions are ten times
    slower with it."""
    if wanted == "auto":
        return torch.bfloat16 if device != "cpu" and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32
