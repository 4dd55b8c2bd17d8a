"""The policy as a rollout worker has it, and how the learner's weights come to it.

With LoRA only the adapters travel (the worker has the same base); whole weights travel when whole weights are trained.
"""

from __future__ import annotations

from pathlib import Path

import torch

from chatgrpo.environments.registry import build_source
from chatgrpo.inference.admission import ROLLOUT_PATIENCE
from chatgrpo.inference.loading import load
from chatgrpo.inference.torch_engine import TorchEngine
from chatgrpo.rewards.pool import RewardPool
from chatgrpo.rewards.rubric import Rubric
from chatgrpo.rollouts.params import RolloutParams
from chatgrpo.rollouts.worker import Sampler, Weights
from chatgrpo.training.config import TrainConfig
from chatgrpo.training.policy import Policy
from chatgrpo.training.precision import compute_dtype, device_of_rank


def weights_of(policy: Policy, version: int) -> Weights:
    """A copy of what is trained, as numpy arrays by name: they cross processes without being copied again. All of it
    must be whole, see `Optimization.whole_weights`."""
    tensors = {name: p.detach().to("cpu", torch.float32, copy=True).numpy() for name, p in policy.trainable()}
    return Weights(version=version, tensors=tensors)


@torch.no_grad()
def put_weights(policy: Policy, weights: Weights) -> None:
    for name, parameter in policy.trainable():
        # A copy: arrays from another process are read-only, which torch does not know.
        parameter.copy_(torch.tensor(weights.tensors[name]))
    policy.weights_changed()


def build_sampler(config: TrainConfig, *, models_dir: Path, runs_dir: Path, device: str | None = None) -> Sampler:
    """Loads model, tasks and rewards. Raises InvalidRequest for what the learner would refuse as well."""
    device = device or device_of_rank()
    loaded = load(config.model, models_dir=models_dir, runs_dir=runs_dir, device=device)
    policy = Policy(
        loaded.model, lora=config.lora, compute_dtype=compute_dtype(config.dtype, device), fused=config.fast_path
    )
    engine = TorchEngine(
        policy.causal_lm,
        loaded.template,
        max_batch_size=config.rollout_batch_size,
        weights=policy.weights,
        patience=ROLLOUT_PATIENCE,
    )

    def put(weights: Weights) -> None:
        put_weights(policy, weights)
        engine.weights_changed(weights.version, go_on=True)

    return Sampler(
        engine=engine,
        tokens=loaded.template,
        source=build_source(config.environment, split="train", seed=config.seed, num_eval=config.num_eval_prompts),
        params=RolloutParams.from_config(config),
        rewards=RewardPool(Rubric(config.rewards), timeout_s=config.reward_timeout_s),
        seed=config.seed,
        load=put,
        context=policy.autocast,
    )
