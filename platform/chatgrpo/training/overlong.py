"""What to do with completions near or over the length limit (DAPO, arXiv:2503.14476, section 3.4)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def overlong_penalty_B(lengths_B: Tensor, *, max_completion_length: int, overlong_buffer: int) -> Tensor:
    """DAPO eq. 13, to be added to the reward: with L = max_completion_length and c = overlong_buffer,
    0 for |y| <= L - c; ((L - c) - |y|) / c up to L; -1 beyond. lengths_B in tokens; a buffer of 0 is off."""
    lengths_B = lengths_B.to(torch.float64)
    if overlong_buffer == 0:
        return torch.zeros_like(lengths_B)
    free = max_completion_length - overlong_buffer
    return ((free - lengths_B) / overlong_buffer).clamp(-1.0, 0.0)


def truncated_rows(last_token_B: Tensor, eos_token_ids: Iterable[int]) -> Tensor:
    """truncated_B: True for a row whose last sampled id is no end-of-sequence id, so a limit cut it."""
    return ~torch.isin(last_token_B, torch.tensor(list(eos_token_ids), device=last_token_B.device))


def truncation_mask_N(truncated_B: Tensor, row_N: Tensor) -> Tensor:
    """mask_N: False for every token of a truncated row. An answer cut short says nothing about its quality."""
    return ~truncated_B[row_N]
