from __future__ import annotations

import math

import pytest
import torch

from chatgrpo.training.entropy import token_entropy


def test_entropy_of_known_distributions() -> None:
    probs = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.25, 0.0]], dtype=torch.float64)
    wanted = [math.log(4), 0.5 * math.log(2) + 0.5 * math.log(4)]
    # a constant added to every logit changes nothing
    assert token_entropy(probs.log() + 3).tolist() == pytest.approx(wanted)


def test_gradient_is_minus_p_times_log_p_plus_entropy_even_beside_an_impossible_token() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2, 0.0]], dtype=torch.float64)
    logits = probs.log().requires_grad_()
    entropy = token_entropy(logits)
    entropy.sum().backward()
    assert logits.grad is not None
    h = entropy.item()
    wanted = [-p * (math.log(p) + h) if p else 0.0 for p in probs[0].tolist()]
    assert logits.grad[0].tolist() == pytest.approx(wanted)
