"""The first call of an elementary function is one thread's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from chatgrpo.inference.loading import load
from chatgrpo.inference.vector_math import resolve_kernels


class FirstSizes(TorchDispatchMode):
    """How many elements the first call of each operator had."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], torch.Tensor):
            self.seen.setdefault(func._schema.name, args[0].numel())
        return func(*args, **(kwargs or {}))


def test_loading_a_model_calls_each_function_on_one_element_first(models_dir: Path) -> None:
    resolve_kernels.cache_clear()
    with FirstSizes() as first:
        load("tiny", models_dir=models_dir)
    assert {first.seen[f"aten::{name}"] for name in ("cos", "sin", "exp", "log", "rsqrt")} == {1}
