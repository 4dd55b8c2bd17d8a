"""Sums over the rows of a packed batch.

Shapes used in all the loss math: N sampled tokens, packed without padding; B rows (completions, all turns of one
episode together). `row_N[t]` is the row of token t. Tokens of one row need not be neighbours, but a row is never
split over two micro-batches: sequence ratios need it whole.
"""

from __future__ import annotations

import torch
from torch import Tensor


def row_sums(values_N: Tensor, row_N: Tensor, num_rows: int) -> Tensor:
    """values_N -> sums_B; 0 for a row without tokens."""
    return values_N.new_zeros(num_rows).index_add(0, row_N, values_N)


def row_means(values_N: Tensor, row_N: Tensor, num_rows: int) -> Tensor:
    """values_N -> means_B; 0 for a row without tokens."""
    lengths_B = torch.bincount(row_N, minlength=num_rows)
    return row_sums(values_N, row_N, num_rows) / lengths_B.clamp(min=1)


def num_rows_in(row_N: Tensor) -> int:
    """One more than the largest row index; 0 for an empty batch."""
    return int(row_N.max()) + 1 if row_N.numel() else 0


def finite_rows(row_N: Tensor, *values_N: Tensor, num_rows: int | None = None) -> Tensor:
    """finite_B: True where every value of the row's tokens is finite. One NaN in a row spoils the whole row, since
    it stands for a forward pass that cannot be trusted; the caller drops and counts such rows."""
    count = num_rows_in(row_N) if num_rows is None else num_rows
    finite_B = torch.ones(count, dtype=torch.bool, device=row_N.device)
    for values in values_N:
        finite_B[row_N[~values.detach().isfinite()]] = False
    return finite_B
