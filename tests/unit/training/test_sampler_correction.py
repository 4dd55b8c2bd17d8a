"""Sampler correction against arithmetic written out here."""

from __future__ import annotations

import math

import pytest
import torch

from chatgrpo.training.sampler_correction import (
    correction_weight,
    off_policy_keep_N,
    sampler_log_ratio,
    sampler_ratio,
)

ROW_N = torch.tensor([0, 1, 0])


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_ratio_per_token_and_per_sequence() -> None:
    # old probabilities 1/2, 1/2, 3/4; the sampler's 1/4, 1, 1/4: rho 2, 1/2, 3; row 0 together 6
    log_ratio = sampler_log_ratio(t(0.5, 0.5, 0.75).log(), t(0.25, 1, 0.25).log())
    assert sampler_ratio(log_ratio, ROW_N, level="token").tolist() == pytest.approx([2, 0.5, 3])
    assert sampler_ratio(log_ratio, ROW_N, level="sequence").tolist() == pytest.approx([6, 0.5, 6])


def test_an_unknown_sampler_counts_as_no_difference() -> None:
    log_ratio = sampler_log_ratio(t(0.5, 0.5, 0.75).log(), t(0.25, math.nan, math.nan).log())
    assert sampler_ratio(log_ratio, ROW_N, level="token").tolist() == pytest.approx([2, 1, 1])
    assert sampler_ratio(log_ratio, ROW_N, level="sequence").tolist() == pytest.approx([2, 1, 2])


def test_truncate_clamps_and_mask_drops() -> None:
    rho = t(0.1, 0.5, 2.0, 2.5, math.inf)
    assert correction_weight(rho, correction="truncate", cap=2.0).tolist() == [0.1, 0.5, 2, 2, 2]
    assert correction_weight(rho, correction="mask", cap=2.0).tolist() == [0.1, 0.5, 2, 0, 0]
    assert correction_weight(rho, correction="truncate", cap=2.0, floor=0.5).tolist() == [0.5, 0.5, 2, 2, 2]
    assert correction_weight(rho, correction="mask", cap=2.0, floor=0.5).tolist() == [0, 0.5, 2, 0, 0]
    assert correction_weight(rho, correction="decoupled", cap=2.0).tolist() == rho.tolist()


def test_no_gradient_flows_through_the_correction() -> None:
    old = t(-1.0, -2.0).requires_grad_()
    assert not sampler_log_ratio(old, t(-1.5, -1.5)).requires_grad


def test_off_policy_mask_drops_bad_rows_that_the_policy_has_left() -> None:
    # mean l_mu - l: row 0 (0.5 + 0.1) / 2 = 0.3; rows 1 and 2 0.3; row 3 0.05; threshold 0.2, advantages -, +, 0, -
    row = torch.tensor([0, 0, 1, 2, 3])
    logprobs, sampler = t(-1.5, -1.1, -1.3, -1.3, -1.05), t(-1, -1, -1, -1, -1)
    keep = off_policy_keep_N(logprobs, sampler, t(-1, -1, 1, 0, -1), row, threshold=0.2)
    assert keep.tolist() == [False, False, True, True, True]
