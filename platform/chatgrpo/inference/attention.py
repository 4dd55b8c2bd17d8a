"""One attention function for every Hugging Face decoder, whose token layout the caller chooses per forward.

`transformers` lets a model be loaded with a named attention function and hands the extra keyword arguments of the
forward down to it. We register one under `ATTENTION`; a forward passes `layout=`, an object that knows where the keys
of each query lie. So packing, prompts shared by a whole group and the KV cache are ours for every architecture, while
projections, norms, rotary embedding, LoRA layers and ZeRO hooks stay those of the model.

Shapes: T packed tokens of one forward, H query heads, K key/value heads, D head dimension.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface

from chatgrpo.errors import InvalidRequest
from chatgrpo.inference.native.kernels import Segments

ATTENTION = "chatgrpo"


class Layout(Protocol):
    """Attention over the T packed tokens of one forward."""

    def attend(self, layer: int, query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, scale: float) -> Tensor:
        """-> 1THD. Rotary positions are applied already."""
        ...


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    layout: Layout = kwargs["layout"]
    return layout.attend(module.layer_idx, query, key, value, scaling), None


AttentionInterface.register(ATTENTION, _attention)


def check_supported(config: Any, max_length: int) -> None:
    """Raises InvalidRequest for a model whose attention is not plain causal attention within `max_length` tokens."""
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and window < max_length:
        raise InvalidRequest(
            f"model attends to a sliding window of {window} tokens; use max_episode_length <= {window}", "model"
        )
    if getattr(config, "attn_logit_softcapping", None):
        raise InvalidRequest(f"model type {config.model_type!r} caps attention logits, which is not supported", "model")


class SegmentLayout:
    """Packed segments, each with its own queries and the keys they may see; differentiable.

    A segment is (prefix, tokens): its queries are `tokens`, its keys are `prefix` followed by `tokens`, causal within
    `tokens`. All are index ranges into the T packed tokens. A prompt is a segment without prefix; each completion of
    its group is a segment whose prefix is that prompt, so the prompt is computed once and its gradient is the sum over
    the group. Segments of one kind are padded to the longest and attended at once; every token belongs to one segment.
    """

    def __init__(self, segments: list[tuple[range, range]], device: torch.device | str = "cpu") -> None:
        self.for_kernels = Segments.of(segments)
        prompts = [s for s in segments if len(s[0]) == 0]
        continuations = [s for s in segments if len(s[0]) > 0]
        self._parts = [_Part(part, device) for part in (prompts, continuations) if part]
        num_tokens = sum(len(tokens) for _, tokens in segments)
        order = torch.cat([part.tokens for part in self._parts])
        assert order.numel() == num_tokens == int(order.max()) + 1, "segments must cover the packed tokens exactly once"
        self._inverse = torch.argsort(order)

    def attend(self, layer: int, query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, scale: float) -> Tensor:
        query, key, value = (x[0].transpose(0, 1) for x in (query_1HTD, key_1KTD, value_1KTD))  # T first
        out = torch.cat([part.attend(query, key, value, scale) for part in self._parts])
        return out.index_select(0, self._inverse)[None]


class _Part:
    """Segments padded to R rows of Q queries and L keys."""

    def __init__(self, segments: list[tuple[range, range]], device: torch.device | str) -> None:
        rows = len(segments)
        num_queries = max(len(tokens) for _, tokens in segments)
        num_prefix = max(len(prefix) for prefix, _ in segments)
        queries = torch.zeros(rows, num_queries, dtype=torch.long)
        prefixes = torch.zeros(rows, num_prefix, dtype=torch.long)
        is_query = torch.zeros(rows, num_queries, dtype=torch.bool)
        is_prefix = torch.zeros(rows, num_prefix, dtype=torch.bool)
        for row, (prefix, tokens) in enumerate(segments):
            queries[row, : len(tokens)] = torch.arange(tokens.start, tokens.stop)
            prefixes[row, : len(prefix)] = torch.arange(prefix.start, prefix.stop)
            is_query[row, : len(tokens)] = True
            is_prefix[row, : len(prefix)] = True
        causal = torch.ones(num_queries, num_queries, dtype=torch.bool).tril()
        visible = torch.cat([is_prefix[:, None].expand(rows, num_queries, num_prefix), causal.expand(rows, -1, -1)], 2)
        self._queries = queries.flatten().to(device)
        self._keys = torch.cat([prefixes, queries], 1).flatten().to(device)
        self._shape = (rows, num_queries, num_prefix + num_queries)
        self._flat = is_query.flatten().nonzero()[:, 0].to(device)
        self._visible = visible[:, None].to(device)
        self._is_causal = num_prefix == 0
        self.tokens = queries.flatten()[is_query.flatten()].to(device)

    def attend(self, query_THD: Tensor, key_TKD: Tensor, value_TKD: Tensor, scale: float) -> Tensor:
        rows, num_queries, num_keys = self._shape
        query = query_THD.index_select(0, self._queries).view(rows, num_queries, *query_THD.shape[1:]).transpose(1, 2)
        key = key_TKD.index_select(0, self._keys).view(rows, num_keys, *key_TKD.shape[1:]).transpose(1, 2)
        value = value_TKD.index_select(0, self._keys).view(rows, num_keys, *value_TKD.shape[1:]).transpose(1, 2)
        out = torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if self._is_causal else self._visible,
            is_causal=self._is_causal,
            scale=scale,
            enable_gqa=True,
        )
        return out.transpose(1, 2).flatten(0, 1).index_select(0, self._flat)
