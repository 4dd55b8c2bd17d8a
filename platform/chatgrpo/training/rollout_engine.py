"""The engine that a run generates with, as its configuration says, and how new weights reach it."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Protocol

from chatgrpo.inference import models
from chatgrpo.inference.activation_tape import ActivationTape
from chatgrpo.inference.admission import ROLLOUT_PATIENCE
from chatgrpo.inference.chat_template import ChatTemplate
from chatgrpo.inference.engine import Engine
from chatgrpo.inference.loading import model_folder
from chatgrpo.inference.torch_engine import TorchEngine
from chatgrpo.inference.vllm_engine import VllmEngine
from chatgrpo.training import ranks
from chatgrpo.training.config import TrainConfig
from chatgrpo.training.export import export_merged
from chatgrpo.training.policy import Policy


class RolloutEngine(Engine, Protocol):
    """An engine that speaks for a policy that is being trained."""

    def weights_changed(self, version: int, *, same: bool = False) -> None:
        """After every change of the policy's parameters, between generations; with `same` the version alone is new."""
        ...

    def recording(self, tape: ActivationTape | None) -> contextlib.AbstractContextManager[None]:
        """What is generated within leaves its activations on `tape`."""
        ...

    def close(self) -> None: ...


def build_engine(
    config: TrainConfig, policy: Policy, template: ChatTemplate, *, models_dir: Path, run_dir: Path
) -> RolloutEngine:
    """Raises InvalidRequest when the engine is not installed or cannot run the model."""
    if config.engine == "vllm":
        return VllmRollouts(config, policy, template, models_dir=models_dir, run_dir=run_dir)
    return TorchEngine(
        policy.causal_lm,
        template,
        max_batch_size=config.rollout_batch_size,
        weights=policy.weights,
        patience=ROLLOUT_PATIENCE,
    )


class VllmRollouts(VllmEngine):
    """vLLM in a process of its own. After an update it reads the policy's adapter, or with full fine-tuning its whole
    weights, from `run_dir`; the files of the update before are then removed."""

    def __init__(
        self, config: TrainConfig, policy: Policy, template: ChatTemplate, *, models_dir: Path, run_dir: Path
    ) -> None:
        self._policy = policy
        self._folder = run_dir / f"rollout-weights-{ranks.rank()}"
        shutil.rmtree(self._folder, ignore_errors=True)
        ref = models.find(config.model, runs_dir=run_dir.parent)
        is_adapter = ref.adapter is not None
        super().__init__(
            export_merged(config.model, runs_dir=run_dir.parent, models_dir=models_dir)
            if is_adapter
            else model_folder(ref, models_dir),
            template,
            config.vllm,
            max_batch_size=config.rollout_batch_size,
            lora_rank=config.lora.r if config.lora else 0,
            whole_vocabulary=config.top_p < 1 or config.top_k > 0,
            seed=config.seed,
        )
        if config.lora:
            # Says before the first step what vLLM cannot do.
            self.weights_changed(0)

    def weights_changed(self, version: int, *, same: bool = False) -> None:
        if same:
            self._weight_version = version
            return
        folder = self._folder / f"{version}"
        shutil.rmtree(folder, ignore_errors=True)
        self._policy.model.save_pretrained(folder)
        if self._policy.is_lora:
            self.load_adapter(folder, version)
        else:
            self.load_weights(folder, version)
        for old in self._folder.iterdir():
            if old.name != folder.name:
                shutil.rmtree(old)

    def recording(self, tape: ActivationTape | None) -> contextlib.AbstractContextManager[None]:
        assert tape is None, "vLLM leaves no activations"
        return contextlib.nullcontext()

    def close(self) -> None:
        super().close()
        shutil.rmtree(self._folder, ignore_errors=True)
