"""Loads what chat speaks with: whole models, and jobs' adapters beside others on the engine of their base.

A base is loaded once, whoever asks for it first, and stays as long as itself or one of its adapters is used.
"""

from __future__ import annotations

import hashlib
import logging
import weakref
from functools import partial
from pathlib import Path

import torch

from chatgrpo.errors import Conflict, PlatformError
from chatgrpo.inference import models
from chatgrpo.inference.adapters import LoraAdapter, read_adapter, why_apart
from chatgrpo.inference.chat_runner import Speaker
from chatgrpo.inference.llama_weights import LlamaWeights
from chatgrpo.inference.loading import LoadedModel, load
from chatgrpo.inference.native import kernels
from chatgrpo.inference.torch_engine import TorchEngine

logger = logging.getLogger(__name__)

# An export is replaced in an instant; who reads it just then reads again.
_READS = 3


class _Base:
    """A loaded model with its engine, as several speakers share it."""

    def __init__(self, loaded: LoadedModel, *, prefix_bytes: int) -> None:
        self.loaded = loaded
        # Packed weights take the place of those that are mapped from the file, and say a token in a third of the time.
        self.engine = TorchEngine(
            loaded.model,
            loaded.template,
            weights=LlamaWeights.of(loaded.model, only_speaks=True) if kernels.is_available() else None,
            prefix_bytes=prefix_bytes,
            drafts=True,
        )


class Speakers:
    """`load`, `base_of` and `revision` for a `ChatRunner`; one load at a time. `prefix_bytes`: of each base, see
    `TorchEngine`."""

    def __init__(
        self, *, models_dir: Path, runs_dir: Path, dtype: torch.dtype, device: str, prefix_bytes: int = 0
    ) -> None:
        self._prefix_bytes = prefix_bytes
        self._runs_dir = runs_dir
        self._load = partial(load, models_dir=models_dir, runs_dir=runs_dir, dtype=dtype, device=device)
        self._bases: weakref.WeakValueDictionary[str, _Base] = weakref.WeakValueDictionary()

    def base_of(self, name: str) -> str | None:
        """The model whose engine `name` will share; None for a whole model, and for an adapter that has to be merged
        into one. Raises what `models.find` raises."""
        ref = models.find(name, runs_dir=self._runs_dir)
        if ref.adapter is None or ref.base is None:
            return None
        if reason := why_apart(ref.adapter):
            logger.info("model=%s is loaded as a whole: %s", name, reason)
            return None
        # An adapter on another job's merged adapter has a whole model under it, which has that job's name.
        return ref.base

    def revision(self, name: str) -> str | None:
        """Changes when a job's adapter is published again; None for anything else, and while there is none."""
        if name in models.BUILT_IN or "/" in name:
            return None
        try:
            found = (self._runs_dir / name / "export" / "adapter").stat()
        except OSError:
            return None
        return hashlib.sha256(f"{found.st_ino}/{found.st_mtime_ns}".encode()).hexdigest()[:8]

    def load(self, name: str) -> Speaker:
        """Raises what `models.find` raises."""
        base_name = self.base_of(name)
        if base_name is None:
            return self._speaker(self._base(name), name)
        base = self._base(base_name)
        for _ in range(_READS):
            revision = self.revision(name)
            try:
                adapter = read_adapter(self._runs_dir / name / "export" / "adapter", base.loaded.model)
            except (OSError, PlatformError):
                if revision == self.revision(name):
                    raise
                continue
            if revision == self.revision(name):
                return self._speaker(base, f"{name}@{revision}", adapter)
        raise Conflict(f"job {name} is being published over and over; try again")

    def _base(self, name: str) -> _Base:
        if (base := self._bases.get(name)) is None:
            self._bases[name] = base = _Base(self._load(name), prefix_bytes=self._prefix_bytes)
        return base

    def _speaker(self, base: _Base, version: str, adapter: LoraAdapter | None = None) -> Speaker:
        return Speaker(
            engine=base.engine,
            template=base.loaded.template,
            context_window=int(base.loaded.model.config.max_position_embeddings),
            version=version,
            adapter=None if adapter is None else version,
            attach=None if adapter is None else partial(base.engine.set_adapter, version, adapter),
            detach=None if adapter is None else partial(base.engine.drop_adapter, version),
            holds=base,
        )
