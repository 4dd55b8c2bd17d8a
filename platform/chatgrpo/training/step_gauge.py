"""What a step tells about the machine it ran on and the weights that spoke in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from chatgrpo.rollouts.episode import Group
from chatgrpo.training.config import TrainConfig
from chatgrpo.training.utilization import memory_bytes, num_update_tokens, peak_flops, update_mfu, weight_lag


class StepGauge:
    """Of one rank. Counts the model's parameters when it is made: sharded ones cannot be counted later."""

    def __init__(self, config: TrainConfig, model: torch.nn.Module, *, device: str, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self._trains_all = config.lora is None
        self._num_iterations = config.num_iterations

    def figures(
        self, groups: Sequence[Group], advantages: Sequence[Sequence[float]], *, step: int, update_s: float
    ) -> dict[str, float]:
        """Of the step after which the weights are version `step`."""
        tokens = num_update_tokens([group.episodes for group in groups], advantages)
        mfu = update_mfu(
            tokens,
            update_s,
            num_parameters=self._num_parameters,
            trains_all=self._trains_all,
            num_iterations=self._num_iterations,
            peak=peak_flops(self._device, self._dtype),
        )
        return {
            "mfu": mfu,
            "memory_bytes": float(memory_bytes(self._device)),
            "update_tokens_per_s": tokens * self._num_iterations / update_s if update_s > 0 else 0.0,
            "weight_lag": float(weight_lag(groups, step - 1)),
        }
