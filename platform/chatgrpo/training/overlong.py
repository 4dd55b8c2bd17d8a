"""A soft penalty on completions near or over the length limit (DAPO, arXiv:2503.14476, section 3.4).

The hard form, `mask_truncated_completions`, leaves out whole rows and needs no formula.
"""

from __future__ import annotations

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
