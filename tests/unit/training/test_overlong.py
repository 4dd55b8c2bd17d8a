"""Length shaping against the three branches of DAPO's equation 13."""

from __future__ import annotations

import torch

from chatgrpo.training.overlong import overlong_penalty_B, truncated_rows, truncation_mask_N


def test_penalty_falls_linearly_over_the_buffer() -> None:
    # L = 100, c = 20: free up to 80; at 85 (80 - 85) / 20 = -1/4; at 100 -1; beyond -1
    lengths_B = torch.tensor([0, 80, 85, 100, 101, 300])
    penalty = overlong_penalty_B(lengths_B, max_completion_length=100, overlong_buffer=20)
    assert penalty.tolist() == [0, 0, -0.25, -1, -1, -1]


def test_no_buffer_no_penalty() -> None:
    penalty = overlong_penalty_B(torch.tensor([5, 500]), max_completion_length=100, overlong_buffer=0)
    assert penalty.tolist() == [0, 0]


def test_truncated_rows_lose_all_their_tokens() -> None:
    truncated_B = truncated_rows(torch.tensor([2, 7, 3]), eos_token_ids=[2, 3])
    assert truncated_B.tolist() == [False, True, False]
    assert truncation_mask_N(truncated_B, torch.tensor([1, 0, 1, 2])).tolist() == [False, True, False, True]
