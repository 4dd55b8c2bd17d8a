"""The weights of a Llama-shaped model as four large matrices a layer, adapters merged in.

The model's own parameters become views of the large matrices: there is one copy of the weights, and whatever updates
the parameters in place (optimizer, checkpoint) updates them here. Whoever speaks uses a second, packed copy, with
adapters W + s B A; the base is never written, so that nothing has to be subtracted again. `release` forgets the copy
after every change, the next product makes it anew.

Shapes: E hidden size, F intermediate size, H query heads, K key/value heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chatgrpo.inference import products
from chatgrpo.inference.huge_pages import HugePages
from chatgrpo.inference.native.decode import DecodeKernel
from chatgrpo.inference.native.kernels import Beside, Panels

# Llama's wiring: pre-norm, rotary positions on halves, SiLU gate; Qwen3 also norms each head's queries and keys.
_MODEL_TYPES = frozenset({"llama", "qwen2", "qwen3", "mistral"})


@dataclass(frozen=True, slots=True)
class Adapter:
    """y = x W^T + scale * (x A^T) B^T."""

    a_RI: nn.Parameter
    b_OR: nn.Parameter
    scale: float


@dataclass(frozen=True, slots=True)
class Projection:
    """One of the model's linear layers: rows [start, stop) of a fused weight."""

    module: Any
    start: int
    stop: int

    @property
    def base(self) -> Any:
        return _base(self.module)

    @property
    def adapter(self) -> Adapter | None:
        return _adapter(self.module)


class Fused:
    """Projections of the same input, stacked: y = x W^T + b. The layers' own parameters become views of the stack.

    `pages`: where packed copies are. `base`: the same site of a model whose parameters these modules share. Its stack
    serves both, and adapters are multiplied apart instead of being merged into a copy of it. `only_speaks`: the packed
    copy is all that is kept; the modules' own weights are then shapes without content."""

    def __init__(
        self, modules: list[Any], pages: HugePages, base: Fused | None = None, *, only_speaks: bool = False
    ) -> None:
        stops = torch.tensor([_base(m).weight.shape[0] for m in modules]).cumsum(0).tolist()
        self.projections = [Projection(m, a, b) for m, a, b in zip(modules, [0, *stops], stops, strict=False)]
        self.has_adapters = any(p.adapter is not None for p in self.projections)
        self.merges = base is None
        self._base = base
        self._pages = pages
        self._only_speaks = False
        self._spoken: Tensor | Panels | None = None
        self.weight: Tensor
        self.bias: Tensor | None
        if base is not None:
            self.weight, self.bias = base.weight, base.bias
            return
        biases = [p.base.bias for p in self.projections]
        self.weight = torch.cat([p.base.weight.detach() for p in self.projections])
        self.bias = None if biases[0] is None else torch.cat([b.detach() for b in biases])
        self._only_speaks = only_speaks
        if only_speaks:
            self._spoken = products.pack(self._merged(), self._pages)
            self.weight = self.weight.new_zeros(1).expand(self.weight.shape)
        for p in self.projections:
            p.base.weight.data = self.weight[p.start : p.stop]
            if self.bias is not None:
                p.base.bias.data = self.bias[p.start : p.stop]

    def release(self) -> None:
        """Forgets the packed copy: after its weights changed, or because something else wants the memory."""
        if not self._only_speaks:
            self._spoken = None

    @property
    def spoken(self) -> Tensor | Panels:
        """For products with inputs: the weight with what the adapters make of it, packed when it is first asked for."""
        if self._base is not None:
            return self._base.spoken
        if self._spoken is None:
            self._spoken = products.pack(self._merged(), self._pages)
        return self._spoken

    @property
    def beside(self) -> Beside | None:
        """What a decode kernel adds to its products."""
        return None

    @property
    def is_whole(self) -> bool:
        """Whether `spoken` is all there is to say: no adapter is multiplied apart."""
        return self.merges or not self.has_adapters

    @torch.no_grad()
    def _merged(self) -> Tensor:
        if not (self.has_adapters and self.merges):
            return self.weight
        merged = self.weight.clone()
        for p in self.projections:
            if (adapter := p.adapter) is not None:
                merged[p.start : p.stop].addmm_(adapter.b_OR, adapter.a_RI, alpha=adapter.scale)
        return merged

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """`out`: memory that the result may be put into."""
        return self._with_adapters(x, products.linear(x, self.spoken, self.bias, out))

    def added_to(self, x: Tensor, residual: Tensor, out: Tensor | None = None) -> Tensor:
        return self._with_adapters(x, products.linear_add(x, self.spoken, self.bias, residual, out))

    def _with_adapters(self, x: Tensor, y: Tensor) -> Tensor:
        """Adds to `y` what is not merged."""
        if self.has_adapters and not self.merges:
            for p in self.projections:
                if (adapter := p.adapter) is not None:
                    low = products.linear(x, adapter.a_RI)
                    y[:, p.start : p.stop].addmm_(low, adapter.b_OR.T, alpha=adapter.scale)
        return y


@dataclass(frozen=True, slots=True)
class Layer:
    """`qkv` (H + 2K) D x E, `out` E x HD, `gate_up` 2F x E, `down` E x F. `head_norms`: of queries and of keys, D."""

    input_norm: nn.Parameter
    qkv: Fused
    out: Fused
    post_norm: nn.Parameter
    gate_up: Fused
    down: Fused
    head_norms: tuple[nn.Parameter, nn.Parameter] | None

    def sites(self) -> tuple[Fused, ...]:
        return self.qkv, self.out, self.gate_up, self.down


class LlamaWeights:
    """Of a causal LM, with or without LoRA layers inside. Make it with `of`, which knows what it cannot do.

    `base`: those of the model without LoRA layers whose parameters this one shares (see `SharedBase`). `only_speaks`:
    for chat, which never changes them: the layers' weights are held packed and in no other way, so the model's own
    modules can compute nothing any more."""

    def __init__(self, causal_lm: Any, base: LlamaWeights | None = None, *, only_speaks: bool = False) -> None:
        config, decoder = causal_lm.config, causal_lm.get_decoder()
        self.num_heads = int(config.num_attention_heads)
        self.num_kv_heads = int(config.num_key_value_heads)
        attention = decoder.layers[0].self_attn
        self.head_dim = int(attention.head_dim)
        self.scale = float(attention.scaling)
        self.eps = float(config.rms_norm_eps)
        self.hidden_size = int(config.hidden_size)
        self.intermediate_size = int(config.intermediate_size)
        self.embedding: nn.Parameter = decoder.embed_tokens.weight
        self.padding_id: int | None = decoder.embed_tokens.padding_idx
        self.final_norm: nn.Parameter = decoder.norm.weight
        self.rotary = decoder.rotary_emb
        self._pages = HugePages()
        self.layers: list[Layer] = [
            self._layer(layer, base.layers[index] if base else None, only_speaks=only_speaks)
            for index, layer in enumerate(decoder.layers)
        ]
        # A loaded model is a mapped file; with the last parameter that points into it, its pages leave memory.
        fused = {p.base.weight.data_ptr() for layer in self.layers for site in layer.sites() for p in site.projections}
        for parameter in causal_lm.parameters():
            if base is None and parameter.data_ptr() not in fused:
                parameter.data = parameter.data.clone()
        self._head = causal_lm.get_output_embeddings()
        self._head_adapter = _adapter(self._head)
        self._spoken_head: Tensor | Panels | None = None
        self._kernel: DecodeKernel | None = None

    @staticmethod
    def of(causal_lm: Any, base: LlamaWeights | None = None, *, only_speaks: bool = False) -> LlamaWeights | None:
        """None for a model that is wired in another way; it then takes the general path."""
        return LlamaWeights(causal_lm, base, only_speaks=only_speaks) if _fits(causal_lm) else None

    def release(self) -> None:
        """Forgets the packed copies, after the weights changed or when something else wants the memory; whoever speaks
        next makes them anew."""
        self._kernel = self._spoken_head = None
        for layer in self.layers:
            for site in layer.sites():
                site.release()
        self._pages.clear()

    def decode_kernel(self) -> DecodeKernel | None:
        """Decode steps as one call; None where there are no kernels or an adapter is not merged."""
        if self._kernel is None and all(site.is_whole for layer in self.layers for site in layer.sites()):
            self._kernel = DecodeKernel(self) if DecodeKernel.suits(self) else None
        return self._kernel

    def logits(self, hidden_NE: Tensor) -> Tensor:
        if self._spoken_head is None:
            self._spoken_head = products.pack(self._merged_head(), self._pages)
        return products.linear(hidden_NE, self._spoken_head, _base(self._head).bias)

    @torch.no_grad()
    def _merged_head(self) -> Tensor:
        weight: Tensor = _base(self._head).weight
        if (adapter := self._head_adapter) is not None:
            return torch.addmm(weight, adapter.b_OR, adapter.a_RI, alpha=adapter.scale)
        return weight.detach()

    def _layer(self, layer: Any, base: Layer | None, *, only_speaks: bool) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        has_norms = hasattr(attention, "q_norm")
        return Layer(
            input_norm=layer.input_layernorm.weight,
            qkv=Fused(
                [attention.q_proj, attention.k_proj, attention.v_proj],
                self._pages,
                base.qkv if base else None,
                only_speaks=only_speaks,
            ),
            out=Fused([attention.o_proj], self._pages, base.out if base else None, only_speaks=only_speaks),
            post_norm=layer.post_attention_layernorm.weight,
            gate_up=Fused(
                [mlp.gate_proj, mlp.up_proj], self._pages, base.gate_up if base else None, only_speaks=only_speaks
            ),
            down=Fused([mlp.down_proj], self._pages, base.down if base else None, only_speaks=only_speaks),
            head_norms=(attention.q_norm.weight, attention.k_norm.weight) if has_norms else None,
        )


def _base(module: Any) -> Any:
    return getattr(module, "base_layer", module)


def _adapter(module: Any) -> Adapter | None:
    if _base(module) is module:
        return None
    (name,) = module.active_adapters
    return Adapter(module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name]))


def _fits(causal_lm: Any) -> bool:
    config = causal_lm.config
    if config.model_type not in _MODEL_TYPES or config.hidden_act != "silu":
        return False
    if next(causal_lm.parameters()).dtype != torch.float32:
        return False
    return all(_is_plain(m) for m in causal_lm.modules() if hasattr(m, "base_layer"))


def _is_plain(module: Any) -> bool:
    """A LoRA layer on a linear one with one adapter, nothing merged and no extras."""
    names = list(module.active_adapters)
    return (
        isinstance(module.base_layer, nn.Linear)
        and len(names) == 1
        and not module.merged
        and not getattr(module, "use_dora", {}).get(names[0], False)
        and isinstance(module.lora_dropout[names[0]], nn.Identity)
        and module.lora_B[names[0]].bias is None
    )
