"""Each surrogate against arithmetic written out here, and what is clipped against its gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatgrpo.training.ratios import sequence_ratio, token_ratio
from chatgrpo.training.surrogates import Surrogate, cispo_surrogate, clip_surrogate, sapo_surrogate


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gradient(loss_N: torch.Tensor, leaf_N: torch.Tensor) -> list[float]:
    (grad,) = torch.autograd.grad(loss_N.sum(), leaf_N)
    return grad.tolist()


def test_clip_takes_the_pessimistic_side() -> None:
    # epsilon 0.2 / 0.3:  A = 2: min(1.5 * 2, 1.3 * 2) = 2.6; min(0.5 * 2, 0.8 * 2) = 1
    #                     A = -2: min(1.5 * -2, 1.3 * -2) = -3; min(0.5 * -2, 0.8 * -2) = -1.6
    ratio = t(1.5, 0.5, 1.5, 0.5).requires_grad_()
    part = clip_surrogate(ratio, t(2, 2, -2, -2), epsilon=0.2, epsilon_high=0.3)
    assert part.loss_N.tolist() == pytest.approx([-2.6, -1.0, 3.0, 1.6])
    assert gradient(part.loss_N, ratio) == [0, -2, 2, 0]
    assert part.clipped_low_N.tolist() == [False, False, False, True]
    assert part.clipped_high_N.tolist() == [True, False, False, False]


def test_delta_bounds_the_ratio_of_negative_advantages() -> None:
    # min(min(10, 3) * -2, 1.2 * -2) = -6; a ratio of 2 lies below delta: min(2 * -2, 1.2 * -2) = -4
    ratio = t(10, 2, 10).requires_grad_()
    part = clip_surrogate(ratio, t(-2, -2, 2), epsilon=0.2, epsilon_high=0.2, delta=3.0)
    assert part.loss_N.tolist() == pytest.approx([6.0, 4.0, -2.4])
    assert gradient(part.loss_N, ratio) == [0, 2, 0]
    assert part.clipped_high_N.tolist() == [True, False, True]


def test_cispo_caps_the_weight_and_keeps_the_gradient() -> None:
    # -min(ratio, 4) A l: ratio 2 at l = -1, A = 3 -> 6; ratio 10 -> 4 * 3 * 1 = 12; gradient -min(ratio, 4) A
    lp = t(-1, -1).requires_grad_()
    part = cispo_surrogate(token_ratio(lp, t(-1 - math.log(2), -1 - math.log(10))), lp, t(3, 3), cap=4.0)
    assert part.loss_N.tolist() == pytest.approx([6, 12])
    assert gradient(part.loss_N, lp) == pytest.approx([-6, -12])
    assert part.clipped_high_N.tolist() == [False, True]


def test_sapo_gates_softly_with_a_temperature_by_sign() -> None:
    # A = 2, tau 1: -(4 / 1) sigmoid(0.5) * 2; A = -2, tau 1.05: (4 / 1.05) sigmoid(1.05 * 0.5) * 2
    part = sapo_surrogate(t(1.5, 1.5), t(2, -2), temperature_pos=1.0, temperature_neg=1.05)
    wanted = [-8 / (1 + math.exp(-0.5)), 8 / 1.05 / (1 + math.exp(-0.525))]
    assert part.loss_N.tolist() == pytest.approx(wanted)


def test_sequence_ratio_is_the_geometric_mean_and_passes_gradient_per_token() -> None:
    # row 0: log-ratios 0.3 and -0.1, mean 0.1; row 1: 0.5
    lp = t(0.3, 0.5, -0.1).requires_grad_()
    ratio = sequence_ratio(lp, t(0, 0, 0), torch.tensor([0, 1, 0]))
    assert ratio.tolist() == pytest.approx([math.exp(0.1), math.exp(0.5), math.exp(0.1)])
    assert gradient(ratio, lp) == pytest.approx([math.exp(0.1), math.exp(0.5), math.exp(0.1)])


def test_sequence_ratio_has_the_gradient_of_the_papers_ratio() -> None:
    """sum_t of the stop-gradient form and n_i * s_i have the same gradient."""
    row = torch.tensor([0, 0, 0])
    lp = t(0.3, -0.2, 0.4).requires_grad_()
    paper = 3 * (lp - t(0.1, 0.1, 0.1)).mean().exp()
    assert gradient(sequence_ratio(lp, t(0.1, 0.1, 0.1), row), lp) == pytest.approx(gradient(paper, lp))


ratios = st.floats(0.05, 20)
signed = st.floats(-3, 3)


@given(ratios, signed, st.floats(0.01, 0.9), st.floats(0.01, 0.9))
def test_dual_clip_is_the_two_sided_clip(r: float, a: float, low: float, high: float) -> None:
    """PPO's dual clip, max(min(r A, clip(r) A), c A) for A < 0, with c = 3."""
    plain = min(r * a, min(max(r, 1 - low), 1 + high) * a)
    wanted = max(plain, 3 * a) if a < 0 else plain
    part = clip_surrogate(t(r), t(a), epsilon=low, epsilon_high=high, delta=3.0)
    assert part.loss_N.item() == pytest.approx(-wanted)


@given(ratios, signed.filter(lambda a: abs(a) > 1e-3), st.one_of(st.none(), st.floats(1.5, 10)))
def test_clipped_means_no_gradient(r: float, a: float, delta: float | None) -> None:
    ratio = t(r).requires_grad_()
    part = clip_surrogate(ratio, t(a), epsilon=0.2, epsilon_high=0.3, delta=delta)
    clipped = bool((part.clipped_low_N | part.clipped_high_N).item())
    assert clipped == (gradient(part.loss_N, ratio) == [0])


@given(st.lists(signed, min_size=1, max_size=5))
def test_on_policy_every_family_has_the_gradient_minus_a(a: list[float]) -> None:
    lp = t(*[-0.7] * len(a)).requires_grad_()
    row = torch.zeros(len(a), dtype=torch.int64)
    for ratio in (token_ratio(lp, lp.detach()), sequence_ratio(lp, lp.detach(), row)):
        parts: list[Surrogate] = [
            clip_surrogate(ratio, t(*a), epsilon=0.2, epsilon_high=0.2),
            clip_surrogate(ratio, t(*a), epsilon=0.1, epsilon_high=0.4, delta=3.0),
            cispo_surrogate(ratio, lp, t(*a), cap=5.0),
            sapo_surrogate(ratio, t(*a), temperature_pos=1.0, temperature_neg=1.05),
        ]
        for part in parts:
            (grad,) = torch.autograd.grad(part.loss_N.sum(), lp, retain_graph=True)
            assert grad.tolist() == pytest.approx([-x for x in a])
            assert not (part.clipped_low_N | part.clipped_high_N).any()
