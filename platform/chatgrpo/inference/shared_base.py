"""One copy of a model's weights under several models, each with adapter layers of its own."""

from __future__ import annotations

import copy
from itertools import chain

from chatgrpo.inference.llama_weights import LlamaWeights
from chatgrpo.inference.loading import LoadedModel


class SharedBase:
    """Takes a loaded model, which stays without adapters. `weights`: its fused ones, None when it has none."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.weights = LlamaWeights.of(loaded.model)

    def fork(self) -> LoadedModel:
        """The same parameters and buffers in new modules. What trains must be in layers that are put around them."""
        model = self.loaded.model
        shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
        return LoadedModel(self.loaded.name, copy.deepcopy(model, shared), self.loaded.template)
