"""Loads what chat speaks with by vLLM: whole models, and jobs' adapters beside others on the engine of their base."""

from __future__ import annotations

import logging
import random
import weakref
from functools import partial
from pathlib import Path

import torch

from chatgrpo.errors import InvalidRequest, PlatformError
from chatgrpo.inference import models
from chatgrpo.inference.chat_runner import Speaker
from chatgrpo.inference.loading import load_template, model_folder
from chatgrpo.inference.speakers import Speakers
from chatgrpo.inference.vllm_config import VllmConfig
from chatgrpo.inference.vllm_engine import VllmEngine

logger = logging.getLogger(__name__)


class VllmSpeakers(Speakers):
    """As `Speakers`; `num_adapters` can speak on one base at once."""

    def __init__(self, config: VllmConfig, *, models_dir: Path, runs_dir: Path, num_adapters: int) -> None:
        super().__init__(models_dir=models_dir, runs_dir=runs_dir, dtype=torch.float32, device="cpu")
        self._config, self._models_dir, self._num_adapters = config, models_dir, num_adapters
        self._engines: weakref.WeakValueDictionary[str, VllmEngine] = weakref.WeakValueDictionary()

    def load(self, name: str) -> Speaker:
        """Raises what `models.find` and `VllmEngine` raise, and InvalidRequest for an adapter that has to be merged."""
        base = self.base_of(name)
        ref = models.find(base or name, runs_dir=self._runs_dir)
        if ref.adapter is not None:
            raise InvalidRequest(
                f"vLLM cannot run the adapter of {ref.name} beside its base; export it merged, or write chat_engine: "
                "torch",
                "model",
            )
        folder = model_folder(ref, self._models_dir)
        template = load_template(folder)
        if (engine := self._engines.get(ref.name)) is None:
            self._engines[ref.name] = engine = VllmEngine(
                folder,
                template,
                self._config,
                lora_rank=self._config.max_lora_rank,
                num_adapters=self._num_adapters,
                # A chat is not trained on: only who asks for log-probabilities must get true ones.
                exact_logprobs=False,
                # Otherwise every replica would say the same.
                seed=random.getrandbits(31),
            )
        version = name if base is None else f"{name}@{self.revision(name)}"
        adapter = self._runs_dir / name / "export" / "adapter"
        return Speaker(
            engine=engine,
            template=template,
            context_window=engine.context_window,
            version=version,
            adapter=None if base is None else version,
            attach=None if base is None else partial(_attach, engine, adapter, version),
            detach=None if base is None else partial(engine.drop_adapter, version),
            holds=engine,
        )


def _attach(engine: VllmEngine, adapter: Path, name: str) -> None:
    """In the engines' thread, which must go on: who asks for an adapter that is not there is told so by the engine."""
    try:
        engine.load_adapter(adapter, 0, name=name)
    except PlatformError as error:
        logger.warning("%s", error)
