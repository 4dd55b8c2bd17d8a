from __future__ import annotations

import pytest
import torch

from chatgrpo.training import token_logprobs as module
from chatgrpo.training.token_logprobs import token_logprobs


@pytest.mark.parametrize("chunk", [1, 3, 256])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_equal_autograd(monkeypatch: pytest.MonkeyPatch, chunk: int, with_bias: bool) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, requires_grad=True)
    weight = torch.randn(11, 5, requires_grad=True)
    bias = torch.randn(11, requires_grad=True) if with_bias else None
    target = torch.randint(0, 11, (7,))
    upstream_l, upstream_h = torch.randn(7), torch.randn(7)
    inputs = [hidden, weight, *([bias] if bias is not None else [])]

    logprobs, entropy = token_logprobs(hidden, weight, bias, target, scale=1.4)
    ours = torch.autograd.grad((logprobs * upstream_l + entropy * upstream_h).sum(), inputs)

    log_p = torch.log_softmax(torch.nn.functional.linear(hidden, weight, bias) * 1.4, -1)
    expected_l = log_p.gather(-1, target[:, None])[:, 0]
    expected_h = -(log_p.exp() * log_p).sum(-1)
    theirs = torch.autograd.grad((expected_l * upstream_l + expected_h * upstream_h).sum(), inputs)

    torch.testing.assert_close(logprobs, expected_l)
    torch.testing.assert_close(entropy, expected_h)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden = torch.randn(3, 4, requires_grad=True)
    weight = torch.randn(6, 4)
    token_logprobs(hidden, weight, None, torch.tensor([0, 1, 2]), scale=1.0)[0].sum().backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert weight.grad is None


def test_no_tokens() -> None:
    logprobs, entropy = token_logprobs(
        torch.zeros(0, 4), torch.randn(6, 4), None, torch.zeros(0, dtype=torch.long), scale=1.0
    )
    assert logprobs.shape == entropy.shape == (0,)
