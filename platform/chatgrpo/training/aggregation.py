"""From losses per token to one number: a weight per token, such that the loss is a plain sum.

loss = sum over micro-batches and ranks of sum_N(weights_N * loss_N). All counts are global, so no split of the batch
over micro-batches or data-parallel ranks changes a weight. Gradients are summed over ranks, not averaged: a wrapper
that averages (DDP, DeepSpeed) must have its loss multiplied by the number of ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatgrpo.training.config import LossType


def token_weights_N(
    loss_type: LossType,
    row_N: Tensor,
    lengths_B: Tensor,
    *,
    num_rows_global: int,
    num_tokens_global: int,
    max_completion_length: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """weights_N of the tokens in `row_N`, whose rows have `lengths_B` sampled tokens each.

    grpo, sapo, gspo: mean over rows of the mean over the row's tokens, 1 / (n_i B).
    bnpo: mean over the tokens of the optimizer step, 1 / num_tokens_global.
    dapo, cispo: mean over the tokens of the whole generation batch, 1 / num_tokens_global.
    dr_grpo: 1 / (B max_completion_length), free of any length bias (arXiv:2503.20783).

    `num_rows_global` and `num_tokens_global` count every row and token of the step, also rows that are skipped since
    their advantage is 0. Tokens that are masked out are not counted, rows that are masked out are."""
    match loss_type:
        case "grpo" | "sapo" | "gspo":
            return (1.0 / (lengths_B.to(dtype) * num_rows_global))[row_N]
        case "bnpo" | "dapo" | "cispo":
            weight = 1.0 / num_tokens_global
        case "dr_grpo":
            weight = 1.0 / (num_rows_global * max_completion_length)
    return torch.full(row_N.shape, weight, dtype=dtype, device=row_N.device)
