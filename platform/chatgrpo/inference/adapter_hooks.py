"""Adapters side by side on the general path: hooks on the linear layers of any Hugging Face model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from chatgrpo.inference.adapters import RowAdapters


class AdapterHooks:
    """Hooks every linear layer of a causal LM whose weights stay as they are; the model must have no adapter layers.
    The output embedding sees fewer rows than the others: those whose logits are wanted."""

    def __init__(self, causal_lm: Any) -> None:
        self._rows: RowAdapters | None = None
        self._head_rows: RowAdapters | None = None
        self._head = causal_lm.get_output_embeddings()
        for path, module in causal_lm.named_modules():
            assert not hasattr(module, "base_layer"), "adapters side by side need a base without adapter layers"
            if isinstance(module, nn.Linear):
                module.register_forward_hook(partial(self._add, path))

    @contextlib.contextmanager
    def speaking(self, rows: RowAdapters, head_rows: RowAdapters) -> Iterator[None]:
        """Whose rows the forwards within have."""
        self._rows, self._head_rows = rows, head_rows
        try:
            yield
        finally:
            self._rows = self._head_rows = None

    @torch.no_grad()
    def _add(self, path: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        rows = self._head_rows if module is self._head else self._rows
        if rows is not None and rows.groups:
            rows.add_(path, inputs[0].flatten(0, -2), output.view(-1, output.shape[-1]))
