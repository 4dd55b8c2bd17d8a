"""KL estimators against arithmetic written out here."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatgrpo.training.kl import bias_corrected, k1, k2, k3, kl_per_token
from chatgrpo.training.ratios import token_ratio


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_values_at_a_doubled_probability() -> None:
    # pi = 1/2, pi_ref = 1/4: l - l_ref = ln 2, exp(l_ref - l) = 1/2
    lp, ref = t(math.log(0.5)), t(math.log(0.25))
    assert k1(lp, ref).item() == pytest.approx(math.log(2))
    assert k2(lp, ref).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert k3(lp, ref).item() == pytest.approx(0.5 + math.log(2) - 1)


def test_gradients_at_a_doubled_probability() -> None:
    # d k1 = 1; d k2 = l - l_ref = ln 2; d k3 = -exp(l_ref - l) + 1 = 1/2
    for estimator, wanted in (("k1", 1.0), ("k2", math.log(2)), ("k3", 0.5)):
        lp = t(math.log(0.5)).requires_grad_()
        kl_per_token(lp, t(math.log(0.25)), estimator=estimator).sum().backward()
        assert lp.grad is not None
        assert lp.grad.item() == pytest.approx(wanted)


def test_bias_correction_multiplies_by_the_differentiable_ratio() -> None:
    # pi = 1/2, pi_old = 1/3: ratio 3/2; value 3/2 * k3, gradient ratio * (k3 + dk3)
    lp = t(math.log(0.5)).requires_grad_()
    value = bias_corrected(k3(lp, t(math.log(0.25))), token_ratio(lp, t(math.log(1 / 3))))
    kl = 0.5 + math.log(2) - 1
    assert value.item() == pytest.approx(1.5 * kl)
    value.sum().backward()
    assert lp.grad is not None
    assert lp.grad.item() == pytest.approx(1.5 * (kl + 0.5))


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k3_is_never_negative_and_zero_only_at_equality(lp: float, ref: float) -> None:
    value = k3(t(lp), t(ref)).item()
    assert value >= 0
    if lp == ref:
        assert value == 0


def test_k3_keeps_tiny_differences() -> None:
    # x = 1e-4 in float32: x^2 / 2 + x^3 / 6, which exp(x) - 1 - x would round to a few percent at best
    x = torch.tensor([1e-4])
    assert k3(torch.zeros(1), x).item() == pytest.approx(5.0e-9, rel=2e-3)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_corrected_estimators_have_the_exact_gradient_in_expectation(estimator: str) -> None:
    """Expectation over every token of a 3-token policy, sampled from an old policy: the sum p_old(v) * kl(v) * ratio
    is KL(pi || ref), and so is its gradient."""
    logits = t(0.3, -0.2, 1.0).requires_grad_()
    old = t(0.1, 0.4, -0.3).log_softmax(-1)
    ref = t(-0.5, 0.2, 0.9).log_softmax(-1)
    lp = logits.log_softmax(-1)
    exact = (lp.exp() * (lp - ref)).sum()
    (wanted,) = torch.autograd.grad(exact, logits, retain_graph=True)
    estimate = (old.exp() * bias_corrected(kl_per_token(lp, ref, estimator=estimator), token_ratio(lp, old))).sum()
    (actual,) = torch.autograd.grad(estimate, logits)
    assert estimate.item() == pytest.approx(exact.item())
    torch.testing.assert_close(actual, wanted)
