"""What the data-parallel ranks tell each other. With one rank, or without torch.distributed, everything is local."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return dist.get_rank() if _is_on() else 0


def world_size() -> int:
    return dist.get_world_size() if _is_on() else 1


def sum_over_ranks(values: list[float]) -> list[float]:
    """Elementwise, in float64."""
    if world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=_device())
    dist.all_reduce(tensor)
    return [float(v) for v in tensor.tolist()]


def max_over_ranks(value: float) -> float:
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=_device())
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return float(tensor)


def gather(value: Any) -> list[Any]:
    """Every rank's picklable value, by rank."""
    if world_size() == 1:
        return [value]
    out: list[Any] = [None] * world_size()
    dist.all_gather_object(out, value)
    return out


def sum_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Adds up the gradients of all ranks in place, as one flat tensor per dtype. A rank without a gradient adds 0."""
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for grads in by_dtype.values():
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        for grad, part in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def _is_on() -> bool:
    return dist.is_available() and dist.is_initialized()


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
