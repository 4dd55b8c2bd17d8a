"""From a loss to new weights: optimizer, learning-rate schedule, clipping, gradient sums over ranks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from chatgrpo.training import ranks
from chatgrpo.training.config import TrainConfig
from chatgrpo.training.policy import Policy


class Optimization(Protocol):
    """Owns the weights' way forward. The loss is a plain sum over micro-batches and ranks (see `aggregation`)."""

    @property
    def module(self) -> nn.Module:
        """What to call for a forward pass."""
        ...

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """`is_last`: the step's last micro-batch."""
        ...

    def step(self, learning_rate: float) -> float:
        """Updates the weights and forgets the gradients; returns the norm before clipping. A non-finite norm leaves the
        weights as they are."""
        ...

    def whole_weights(self) -> contextlib.AbstractContextManager[None]:
        """Within it every rank holds all weights and may call the model outside `module` (generate, save)."""
        ...

    def save(self, folder: Path) -> None:
        """Optimizer state (and sharded weights, if any). Every rank calls it."""
        ...

    def load(self, folder: Path) -> None: ...


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """Rate of the update number `step` (from 0): linear warm-up, then constant, linear or cosine to 0 at the end."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    match config.lr_scheduler_type:
        case "constant":
            return config.learning_rate
        case "linear":
            return config.learning_rate * max(0.0, 1 - done)
        case "cosine":
            return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def make_optimizer(
    config: TrainConfig, parameters: list[nn.Parameter], *, fused: bool = False
) -> torch.optim.Optimizer:
    """`fused`: one pass over weights, gradients and moments."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.weight_decay,
        fused=fused,
    )


class TorchOptimization:
    """Plain torch; with several ranks the gradients are summed before the step, so all ranks stay equal."""

    def __init__(self, policy: Policy, config: TrainConfig) -> None:
        self._policy = policy
        self._max_grad_norm = config.max_grad_norm
        self._parameters = [p for _, p in policy.trainable()]
        self.optimizer = make_optimizer(config, self._parameters, fused=True)

    @property
    def module(self) -> nn.Module:
        return self._policy

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float) -> float:
        ranks.sum_gradients(self._parameters)
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm))
        if math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @contextlib.contextmanager
    def whole_weights(self) -> Iterator[None]:
        yield

    def save(self, folder: Path) -> None:
        if ranks.rank() == 0:
            torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")

    def load(self, folder: Path) -> None:
        state: dict[str, Any] = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(state)
