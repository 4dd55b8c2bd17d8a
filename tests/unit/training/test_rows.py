from __future__ import annotations

import math

import torch

from chatgrpo.training.rows import finite_rows, num_rows_in, row_means, row_sums

ROW_N = torch.tensor([2, 0, 2, 2])
VALUES_N = torch.tensor([1.0, 5.0, 2.0, 6.0])


def test_sums_and_means_of_rows_that_are_interleaved_or_empty() -> None:
    assert row_sums(VALUES_N, ROW_N, 4).tolist() == [5, 0, 9, 0]
    assert row_means(VALUES_N, ROW_N, 4).tolist() == [5, 0, 3, 0]
    assert num_rows_in(ROW_N) == 3
    assert num_rows_in(ROW_N[:0]) == 0


def test_one_bad_value_spoils_its_row_alone() -> None:
    other_N = torch.tensor([0.0, math.inf, 0.0, 0.0])
    assert finite_rows(ROW_N, VALUES_N).tolist() == [True, True, True]
    assert finite_rows(ROW_N, VALUES_N, other_N, num_rows=4).tolist() == [False, True, True, True]
    assert finite_rows(ROW_N, torch.tensor([1.0, 1.0, math.nan, 1.0])).tolist() == [True, True, False]
