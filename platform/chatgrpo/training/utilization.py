"""How much of what a device can do an update uses: model FLOPs utilisation (MFU, PaLM, arXiv:2204.02311, appendix B).

Forward and backward take 2 and 4 FLOPs a parameter and token; with an adapter the frozen weights need no gradient of
their own, which leaves 2 and 2. Attention's own FLOPs and what checkpointing computes twice are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache

import psutil
import torch

from chatgrpo.rollouts.episode import Episode, Group

# Dense peaks of the makers' data sheets, FLOPs a second in bfloat16 (no sparsity), by part of the device's name.
_PEAKS_BF16 = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "V100": 125e12,
    "T4": 65e12,
}
_SIDE = 1024


@lru_cache(maxsize=4)
def peak_flops(device: str, dtype: torch.dtype) -> float:
    """FLOPs a second: a known GPU's in bfloat16, else what a large matrix product reaches here and now."""
    if device != "cpu" and dtype is not torch.float32:
        name = torch.cuda.get_device_name(device)
        known = next((peak for part, peak in _PEAKS_BF16.items() if part in name), None)
        if known is not None:
            return known
    side = _SIDE if device == "cpu" else 4 * _SIDE
    a = torch.ones(side, side, device=device, dtype=dtype)
    best_s = min(_timed_matmul(a) for _ in range(4))
    return 2.0 * side**3 / best_s


def _timed_matmul(a: torch.Tensor) -> float:
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    started = time.perf_counter()
    torch.matmul(a, a)
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - started


def num_update_tokens(groups: Sequence[Sequence[Episode]], advantages: Sequence[Sequence[float]]) -> int:
    """Tokens of one pass over what teaches: a group's prompt once, each of its episodes that has an advantage."""
    total = 0
    for group, values in zip(groups, advantages, strict=True):
        taught = [episode for episode, value in zip(group, values, strict=True) if value != 0]
        if taught:
            total += taught[0].prompt_length + sum(len(e.token_ids) - e.prompt_length for e in taught)
    return total


def update_mfu(
    num_tokens: int, seconds: float, *, num_parameters: int, trains_all: bool, num_iterations: int, peak: float
) -> float:
    """The share of `peak` that one rank's update of `num_tokens`, seen `num_iterations` times, came to."""
    flops = (6 if trains_all else 4) * float(num_parameters) * num_tokens * num_iterations
    return flops / (seconds * peak) if seconds > 0 else 0.0


def weight_lag(groups: Sequence[Group], step: int) -> int:
    """How many updates old the oldest weights are that spoke in these episodes; 0 while learner and sampler share
    them."""
    return step - min((t.weight_version for g in groups for e in g.episodes for t in e.turns), default=step)


def memory_bytes(device: str) -> int:
    """The most that torch has held on the GPU; on a CPU what the process holds now."""
    if device == "cpu":
        return int(psutil.Process().memory_info().rss)
    return int(torch.cuda.max_memory_allocated(device))
