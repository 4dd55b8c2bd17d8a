"""Weights per token against the means they stand for."""

from __future__ import annotations

import pytest
import torch

from chatgrpo.training.aggregation import token_weights_N

# Losses of three rows with 1, 3 and 0 tokens; two more rows of 2 tokens each were skipped for their zero advantage.
ROW_N = torch.tensor([0, 1, 1, 1])
LOSS_N = torch.tensor([8.0, 1.0, 2.0, 6.0], dtype=torch.float64)
LENGTHS_B = torch.tensor([1, 3, 0])


def aggregate(loss_type: str, **kwargs: int) -> float:
    counts = {"num_rows_global": 5, "num_tokens_global": 8, "max_completion_length": 10} | kwargs
    weights_N = token_weights_N(loss_type, ROW_N, LENGTHS_B, dtype=torch.float64, **counts)
    return (weights_N * LOSS_N).sum().item()


@pytest.mark.parametrize("loss_type", ["grpo", "sapo", "gspo"])
def test_mean_of_row_means(loss_type: str) -> None:
    assert aggregate(loss_type) == pytest.approx((8 / 1 + (1 + 2 + 6) / 3) / 5)


@pytest.mark.parametrize("loss_type", ["bnpo", "dapo", "cispo"])
def test_mean_over_all_tokens_of_the_step(loss_type: str) -> None:
    assert aggregate(loss_type) == pytest.approx(17 / 8)


def test_dr_grpo_divides_by_a_constant() -> None:
    assert aggregate("dr_grpo") == pytest.approx(17 / (5 * 10))


def test_grpo_equals_bnpo_for_one_row() -> None:
    row_N, lengths_B = torch.zeros(3, dtype=torch.int64), torch.tensor([3])
    counts = {"num_rows_global": 1, "num_tokens_global": 3, "max_completion_length": 10}
    weights = [token_weights_N(name, row_N, lengths_B, **counts).tolist() for name in ("grpo", "bnpo")]
    assert weights[0] == weights[1] == pytest.approx([1 / 3] * 3)
