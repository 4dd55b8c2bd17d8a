"""DeepSpeed ZeRO 0-3 behind the same `Optimization` contract; CPU (gloo) and GPU (nccl) take the same path.

Gradient accumulation, the learning rate and the choice of loss scale stay with the learner: DeepSpeed gets one loss per
micro-batch and is told which one closes the step.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from chatgrpo.errors import InvalidRequest
from chatgrpo.training import ranks
from chatgrpo.training.config import TrainConfig
from chatgrpo.training.optimization import make_optimizer
from chatgrpo.training.policy import Policy

# Ours to set, because the training configuration already says them.
_RESERVED = (
    "optimizer",
    "scheduler",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
)


def read_config(config: TrainConfig) -> dict[str, Any]:
    """The DeepSpeed configuration with our part filled in. Raises InvalidRequest naming the key that is not the user's
    to set, or file and reason when it cannot be read."""
    given = config.deepspeed
    assert given is not None
    if isinstance(given, str):
        try:
            given = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidRequest(
                f"cannot read DeepSpeed configuration {config.deepspeed}: {error}", "deepspeed"
            ) from error
    if not isinstance(given, dict):
        raise InvalidRequest(f"expected a mapping, got {type(given).__name__}", "deepspeed")
    for key in _RESERVED:
        if given.get(key, "auto") != "auto":
            raise InvalidRequest(
                f"{key} is set by the training configuration; leave it out or 'auto'", f"deepspeed.{key}"
            )
    settings: dict[str, Any] = {k: v for k, v in given.items() if k not in _RESERVED}
    settings |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": False},
    }
    return settings


class DeepSpeedOptimization:
    def __init__(self, policy: Policy, config: TrainConfig) -> None:
        # The shared-memory op saves a copy between processes of one machine and costs two minutes of compilation.
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        import deepspeed

        settings = read_config(config)
        self._stage = int(settings.get("zero_optimization", {}).get("stage", 0))
        self._policy = policy
        self._engine, *_ = deepspeed.initialize(
            model=policy,
            model_parameters=[p for _, p in policy.trainable()],
            optimizer=make_optimizer(config, [p for _, p in policy.trainable()]),
            config=settings,
        )

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self._engine
        return module

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed averages gradients over ranks; our loss is a sum over them.
        self._engine.backward(loss * ranks.world_size())

    def step(self, learning_rate: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else 0.0

    @contextlib.contextmanager
    def whole_weights(self) -> Iterator[None]:
        if self._stage < 3:
            yield
            return
        import deepspeed

        # Its hooks would re-partition each module after use, under the feet of whoever calls the model directly.
        offload = self._engine.optimizer.parameter_offload
        with deepspeed.zero.GatheredParameters(list(self._policy.parameters())):
            for hook in offload.forward_hooks + offload.backward_hooks:
                hook.remove()
            offload.forward_hooks, offload.backward_hooks = [], []
            try:
                yield
            finally:
                offload._register_deepspeed_module(self._engine.module)

    def save(self, folder: Path) -> None:
        self._engine.save_checkpoint(str(folder / "deepspeed"), tag="state")

    def load(self, folder: Path) -> None:
        loaded, _ = self._engine.load_checkpoint(str(folder / "deepspeed"), tag="state")
        if loaded is None:
            raise InvalidRequest(f"checkpoint {folder} has no DeepSpeed state for this number of workers", "deepspeed")
