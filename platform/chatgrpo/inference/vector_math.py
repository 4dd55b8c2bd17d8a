"""Makes torch's elementary functions exact from their first call on.

oneMKL picks the kernel of each of its vector functions at that function's first call. When the first call comes from
several threads at once, as that of a tensor of more than a few thousand elements does, one thread may run a kernel of
half the accuracy on its part of that one call (github.com/pytorch/pytorch/issues/188792; oneMKL 2024.2 in torch's
wheels). A cosine of a rotary embedding was hit so: log-probabilities of half of a batch were off by 6e-4, once in some
tens of processes on a busy machine, and never again in the same process.
"""

from __future__ import annotations

from functools import cache

import torch

# What ATen/cpu/vml.h sends to oneMKL, beside functions that it may send there in other builds.
_FUNCTIONS = (
    *("acos", "asin", "atan", "cos", "cosh", "erf", "erfc", "erfinv", "exp", "expm1", "log", "log10", "log1p", "log2"),
    *("ceil", "floor", "round", "rsqrt", "sin", "sinh", "sqrt", "tan", "tanh", "trunc"),
)


@cache
def resolve_kernels() -> None:
    """Calls each function once for float32 and float64 with one element, which one thread computes."""
    for dtype in (torch.float32, torch.float64):
        one = torch.full((1,), 0.5, dtype=dtype)
        for name in _FUNCTIONS:
            getattr(torch, name)(one)
