"""Length shaping against the three branches of DAPO's equation 13."""

from __future__ import annotations

import torch

from chatgrpo.training.overlong import overlong_penalty_B


def test_penalty_falls_linearly_over_the_buffer() -> None:
    # L = 100, c = 20: free up to 80; at 85 (80 - 85) / 20 = -1/4; at 100 -1; beyond -1
    lengths_B = torch.tensor([0, 80, 85, 100, 101, 300])
    penalty = overlong_penalty_B(lengths_B, max_completion_length=100, overlong_buffer=20)
    assert penalty.tolist() == [0, 0, -0.25, -1, -1, -1]


def test_no_buffer_no_penalty() -> None:
    penalty = overlong_penalty_B(torch.tensor([5, 500]), max_completion_length=100, overlong_buffer=0)
    assert penalty.tolist() == [0, 0]
