"""LoRA adapters of one base model side by side: every row of a forward speaks with its own.

    y = x W^T                                   once for all rows
    y[rows of a] += s_a (x[rows of a] A_a^T) B_a^T     for each adapter a

as in S-LoRA (arXiv:2311.03285) and Punica (arXiv:2310.18547). Letters: R rank, I inputs, O outputs of a layer, T rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chatgrpo.errors import InvalidRequest
from chatgrpo.inference import products
from chatgrpo.inference.llama_weights import Adapter

# What may differ from its default in a PEFT configuration that this module reads; any other setting changes what the
# adapter computes, or adds weights beside A and B.
_UNDERSTOOD = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "peft_type",
        "peft_version",
        "r",
        "rank_pattern",
        "revision",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
_FACTORS = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True, slots=True, eq=False)
class LoraAdapter:
    """One version of an adapter: path of a linear layer in the causal LM -> its factors. Another version is another
    object, also when a trainer changed the same tensors in place."""

    layers: Mapping[str, Adapter]

    @property
    def rank(self) -> int:
        """The largest of its layers."""
        return max(layer.a_RI.shape[0] for layer in self.layers.values())

    def on(self, like: Tensor) -> LoraAdapter:
        """With factors of `like`'s type and on its device; the same ones where nothing has to change."""
        moved = {
            path: Adapter(_as(layer.a_RI, like), _as(layer.b_OR, like), layer.scale)
            for path, layer in self.layers.items()
        }
        return LoraAdapter(moved)


def _as(parameter: nn.Parameter, like: Tensor) -> nn.Parameter:
    if parameter.dtype == like.dtype and parameter.device == like.device:
        return parameter
    return nn.Parameter(parameter.detach().to(like), requires_grad=False)


def adapter_in(causal_lm: Any) -> LoraAdapter:
    """The adapter that peft put into a model, with its live parameters. The model must have `LlamaWeights`."""
    layers: dict[str, Adapter] = {}
    for path, module in causal_lm.named_modules():
        if hasattr(module, "base_layer"):
            (name,) = module.active_adapters
            layers[path] = Adapter(module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name]))
    return LoraAdapter(layers)


def read_adapter(folder: Path, causal_lm: Any) -> LoraAdapter:
    """A PEFT folder as an adapter of `causal_lm`. Raises InvalidRequest naming what cannot run side by side (see
    `why_apart`) or does not fit the model."""
    from safetensors.torch import load_file

    if reason := why_apart(folder):
        raise InvalidRequest(reason, "adapter")
    given = _config(folder)
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        path, _, kind = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        factors.setdefault(path, {})[kind] = tensor
    linear = {path: m for path, m in causal_lm.named_modules() if isinstance(m, nn.Linear)}
    layers: dict[str, Adapter] = {}
    for path, parts in factors.items():
        if path not in linear:
            raise InvalidRequest(f"{path} of the adapter is no linear layer of the base", "adapter")
        a_RI, b_OR = parts["lora_A"], parts["lora_B"]
        wanted = linear[path].weight
        if (b_OR.shape[0], a_RI.shape[1]) != tuple(wanted.shape) or a_RI.shape[0] != b_OR.shape[1]:
            raise InvalidRequest(
                f"{path} of the adapter is {tuple(b_OR.shape)} x {tuple(a_RI.shape)}, the base has "
                f"{tuple(wanted.shape)}",
                "adapter",
            )
        frozen_a, frozen_b = (nn.Parameter(factor, requires_grad=False) for factor in (a_RI, b_OR))
        layers[path] = Adapter(frozen_a, frozen_b, _scale(given, path))
    return LoraAdapter(layers).on(next(causal_lm.parameters()))


def why_apart(folder: Path) -> str:
    """What keeps the adapter in a PEFT folder from running beside others (DoRA, biases, embeddings, whole modules
    beside A and B); "" when nothing does."""
    from peft import LoraConfig
    from safetensors import safe_open

    plain: dict[str, Any] = LoraConfig().to_dict()  # type: ignore[no-untyped-call]
    for name, value in _config(folder).items():
        if name not in _UNDERSTOOD and value and value != plain.get(name):
            return f"{name}={value!r} cannot run beside other adapters"
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        other = next((key for key in file.keys() if not key.endswith(_FACTORS)), None)  # noqa: SIM118
    return f"{other} is no LoRA factor of a linear layer" if other else ""


def _config(folder: Path) -> dict[str, Any]:
    given: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return given


def _scale(given: Mapping[str, Any], path: str) -> float:
    def of(patterns: Mapping[str, int], default: int) -> int:
        return next((v for name, v in patterns.items() if path == name or path.endswith(f".{name}")), default)

    r = of(given.get("rank_pattern") or {}, given["r"])
    alpha = of(given.get("alpha_pattern") or {}, given["lora_alpha"])
    return float(alpha / (r**0.5 if given.get("use_rslora") else r))


@dataclass(frozen=True, slots=True)
class Group:
    """`rows` of a forward that speak with `adapter`; None: all of them."""

    adapter: LoraAdapter
    rows: Tensor | None


class RowAdapters:
    """Who speaks in each row of one forward: `owners` are (adapter or None for the base, how many rows), in order."""

    def __init__(self, owners: Iterable[tuple[LoraAdapter | None, int]], device: torch.device | str) -> None:
        by_adapter: dict[int, tuple[LoraAdapter, list[int]]] = {}
        start = 0
        for adapter, count in owners:
            if adapter is not None:
                by_adapter.setdefault(id(adapter), (adapter, []))[1].extend(range(start, start + count))
            start += count
        self.num_rows = start
        self.groups = tuple(
            Group(adapter, None if len(rows) == start else torch.tensor(rows, device=device))
            for adapter, rows in by_adapter.values()
        )

    def add_(self, path: str, x_TI: Tensor, y_TO: Tensor) -> None:
        """Adds what the adapters make of `x` at the layer `path` to `y`, in place."""
        for group in self.groups:
            if (layer := group.adapter.layers.get(path)) is None:
                continue
            if group.rows is None:
                y_TO.addmm_(products.linear(x_TI, layer.a_RI), layer.b_OR.T, alpha=layer.scale)
            else:
                low_NR = products.linear(x_TI.index_select(0, group.rows), layer.a_RI)
                y_TO.index_add_(0, group.rows, products.linear(low_NR, layer.b_OR), alpha=layer.scale)
