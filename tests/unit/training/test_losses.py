"""The whole loss: equal to the book in value and gradient, for every setting, and however the batch is cut."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatgrpo.training.aggregation import token_weights_N
from chatgrpo.training.config import LossType, TrainConfig
from chatgrpo.training.loss_metrics import merge_metrics, summary
from chatgrpo.training.losses import LossOutput, policy_loss
from tests.unit.training.reference import Dense, dense_loss

LOSS_TYPES = get_args(LossType)
CLIP_FAMILY = ("grpo", "bnpo", "dr_grpo", "dapo", "gspo")
MAX_LENGTH = 7


def make_config(**kwargs: Any) -> TrainConfig:
    return TrainConfig(max_completion_length=MAX_LENGTH, **kwargs)


def make_batch(seed: int, *, num_rows: int = 4, num_columns: int = 5, spread: float = 0.5) -> Dense:
    """Random rows with holes (tool turns), one of them without any sampled token, some sampler values unknown."""
    g = torch.Generator().manual_seed(seed)

    def random() -> torch.Tensor:
        return torch.randn(num_rows, num_columns, generator=g, dtype=torch.float64)

    mask = torch.rand(num_rows, num_columns, generator=g) < 0.7
    mask[0, 0], mask[-1] = True, num_rows == 1
    old = -1.5 + 0.5 * random()
    sampler = old + spread * random()
    sampler[torch.rand(num_rows, num_columns, generator=g) < 0.1] = math.nan
    return Dense(
        mask=mask,
        logprobs=(old + spread * random()).requires_grad_(),
        old=old,
        sampler=sampler,
        ref=old + spread * random(),
        entropy=random().abs().requires_grad_(),
        advantages=random()[:, 0],
    )


def packed_loss(
    config: TrainConfig, d: Dense, rows: list[int], *, shuffle: int | None = None, skipped_rows: int = 0
) -> LossOutput:
    """The loss of some rows of the batch as one micro-batch; the counts are those of the whole batch."""
    row_N, column_N = torch.nonzero(d.mask, as_tuple=True)
    chosen_N = torch.isin(row_N, torch.tensor(rows))
    row_N, column_N = row_N[chosen_N], column_N[chosen_N]
    if shuffle is not None:
        order_N = torch.randperm(len(row_N), generator=torch.Generator().manual_seed(shuffle))
        row_N, column_N = row_N[order_N], column_N[order_N]
    at = (row_N, column_N)
    return policy_loss(
        config,
        logprobs_N=d.logprobs[at],
        old_logprobs_N=d.old[at],
        sampler_logprobs_N=d.sampler[at],
        ref_logprobs_N=d.ref[at],
        entropy_N=d.entropy[at],
        advantages_N=d.advantages[row_N],
        row_N=row_N,
        weights_N=token_weights_N(
            config.loss_type,
            row_N,
            d.mask.sum(1),
            num_rows_global=d.mask.shape[0] + skipped_rows,
            num_tokens_global=int(d.mask.sum()),
            max_completion_length=config.max_completion_length,
            dtype=torch.float64,
        ),
    )


def gradients(loss: torch.Tensor, d: Dense) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss, [d.logprobs, d.entropy], allow_unused=True)
    return [torch.zeros_like(d.mask, dtype=torch.float64) if g is None else g for g in found]


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    loss_type = draw(st.sampled_from(LOSS_TYPES))
    kwargs: dict[str, Any] = {"loss_type": loss_type}
    if loss_type in CLIP_FAMILY:
        kwargs |= {"epsilon": draw(st.sampled_from([0.05, 0.2])), "delta": draw(st.sampled_from([None, 1.7]))}
        kwargs["epsilon_high"] = draw(st.sampled_from([None, 0.3]))
        kwargs["importance_sampling_level"] = draw(st.sampled_from(["token", "sequence"]))
    elif loss_type == "cispo":
        kwargs["epsilon_high"] = draw(st.sampled_from([None, 1.2]))
    else:
        kwargs |= {"sapo_temperature_pos": draw(st.sampled_from([1.0, 0.5])), "sapo_temperature_neg": 1.3}
    return make_config(
        **kwargs,
        beta=draw(st.sampled_from([0.0, 0.1])),
        kl_estimator=draw(st.sampled_from(["k1", "k2", "k3"])),
        use_bias_correction_kl=draw(st.booleans()),
        entropy_coef=draw(st.sampled_from([0.0, 0.01])),
        sampler_correction=draw(st.sampled_from(["none", "truncate", "mask", "decoupled"])),
        sampler_correction_level=draw(st.sampled_from(["token", "sequence"])),
        sampler_correction_cap=draw(st.sampled_from([1.2, 2.0])),
        sampler_correction_floor=draw(st.sampled_from([0.0, 0.8])),
        off_policy_mask_threshold=draw(st.sampled_from([None, 0.1])),
    )


seeds = st.integers(0, 10_000)


@given(configs(), seeds)
@settings(max_examples=300, deadline=None)
def test_loss_and_gradient_equal_the_book(config: TrainConfig, seed: int) -> None:
    d = make_batch(seed)
    wanted = dense_loss(config, d)
    actual = packed_loss(config, d, [0, 1, 2, 3])
    assert actual.nonfinite_rows == ()
    torch.testing.assert_close(actual.loss, wanted, rtol=1e-10, atol=1e-12)
    for ours, book in zip(gradients(actual.loss, d), gradients(wanted, d), strict=True):
        torch.testing.assert_close(ours, book, rtol=1e-9, atol=1e-12)


@given(configs(), seeds)
@settings(deadline=None)
def test_no_split_over_micro_batches_and_ranks_changes_anything(config: TrainConfig, seed: int) -> None:
    d = make_batch(seed)
    whole = packed_loss(config, d, [0, 1, 2, 3])
    parts = [packed_loss(config, d, rows) for rows in ([2], [0, 3], [1])]
    loss = torch.stack([p.loss for p in parts]).sum()
    torch.testing.assert_close(loss, whole.loss, rtol=1e-10, atol=1e-12)
    for ours, book in zip(gradients(loss, d), gradients(whole.loss, d), strict=True):
        torch.testing.assert_close(ours, book, rtol=1e-9, atol=1e-12)
    assert summary(merge_metrics(p.metrics for p in parts)) == pytest.approx(summary(whole.metrics), abs=1e-9)


@given(configs(), seeds, seeds)
@settings(deadline=None)
def test_the_order_of_packed_tokens_does_not_matter(config: TrainConfig, seed: int, shuffle: int) -> None:
    d = make_batch(seed)
    plain = packed_loss(config, d, [0, 1, 2, 3])
    mixed = packed_loss(config, d, [0, 1, 2, 3], shuffle=shuffle)
    torch.testing.assert_close(mixed.loss, plain.loss, rtol=1e-10, atol=1e-12)
    for ours, book in zip(gradients(mixed.loss, d), gradients(plain.loss, d), strict=True):
        torch.testing.assert_close(ours, book, rtol=1e-9, atol=1e-12)


@given(configs(), seeds)
@settings(deadline=None)
def test_tokens_that_were_not_sampled_get_exactly_no_gradient(config: TrainConfig, seed: int) -> None:
    d = make_batch(seed)
    for grad in gradients(packed_loss(config, d, [0, 1, 2, 3]).loss, d):
        assert (grad[~d.mask] == 0).all()


def small(config: TrainConfig, logprobs: list[float], **kwargs: Any) -> tuple[LossOutput, torch.Tensor]:
    """One token per row, every weight 1, unless `kwargs` say otherwise."""
    leaf = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    n = len(logprobs)
    inputs: dict[str, Any] = {
        "advantages_N": torch.ones(n, dtype=torch.float64),
        "row_N": torch.arange(n),
        "weights_N": torch.ones(n, dtype=torch.float64),
    }
    inputs |= {k: v if isinstance(v, torch.Tensor) else torch.tensor(v, dtype=torch.float64) for k, v in kwargs.items()}
    return policy_loss(config, logprobs_N=leaf, **inputs), leaf


def test_every_term_in_its_place_by_hand() -> None:
    # ratio 1.5, A = 2, clip at 1.2: -2.4; rho = 0.5 / 0.25 = 2 truncated at 1.5: -3.6
    # KL: pi = 0.75, ref 0.375: k3 = 0.5 + ln 2 - 1, times ratio 1.5, times beta 0.1; entropy 0.7 * 0.01; weight 1 / 4
    config = make_config(
        sampler_correction="truncate", sampler_correction_cap=1.5, beta=0.1, entropy_coef=0.01, loss_type="dapo"
    )
    out, _ = small(
        config,
        [math.log(0.75)],
        old_logprobs_N=[math.log(0.5)],
        sampler_logprobs_N=[math.log(0.25)],
        ref_logprobs_N=[math.log(0.375)],
        entropy_N=[0.7],
        advantages_N=[2.0],
        weights_N=[0.25],
    )
    k3 = 0.5 + math.log(2) - 1
    assert out.loss.item() == pytest.approx((-2.4 * 1.5 + 0.1 * 1.5 * k3 - 0.01 * 0.7) / 4)
    assert summary(out.metrics) == pytest.approx(
        {
            "loss": out.loss.item(),
            "kl": k3,
            "entropy": 0.7,
            "ratio_mean": 1.5,
            "ratio_max": 1.5,
            "clip_fraction_low": 0.0,
            "clip_fraction_high": 1.0,
            "sampler_weight_mean": 1.5,
            "sampler_delta_mean": math.log(2),
            "sampler_delta_max": math.log(2),
        }
    )


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_decoupled_ppo_by_hand(loss_type: str) -> None:
    # prox 0.5, behaviour 0.2: w = 2.5; theta 0.45: ratio 0.9; A = -3: -2.5 * min(0.9 * -3, 0.9 * -3) = 6.75
    config = make_config(sampler_correction="decoupled", loss_type=loss_type)
    out, leaf = small(
        config,
        [math.log(0.45)],
        old_logprobs_N=[math.log(0.5)],
        sampler_logprobs_N=[math.log(0.2)],
        advantages_N=[-3.0],
    )
    assert out.loss.item() == pytest.approx(6.75)
    out.loss.backward()
    assert leaf.grad is not None
    assert leaf.grad.item() == pytest.approx(6.75)  # d/dl of w * 3 * exp(l - prox)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_on_policy_all_losses_share_one_gradient(loss_type: str) -> None:
    advantages = [1.5, -0.5, 0.0]
    out, leaf = small(make_config(loss_type=loss_type), [-1.0, -2.0, -0.1], advantages_N=advantages)
    out.loss.backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == pytest.approx([-a for a in advantages])
    assert out.metrics["ratio_max"].item() == 1.0


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_step_downhill_moves_the_log_prob_towards_the_advantage(loss_type: str, advantage: float) -> None:
    out, leaf = small(
        make_config(loss_type=loss_type),
        [-1.0],
        old_logprobs_N=[-1.05],
        advantages_N=[advantage],
        row_N=torch.zeros(1).long(),
    )
    out.loss.backward()
    assert leaf.grad is not None
    assert math.copysign(1, -leaf.grad.item()) == advantage


@pytest.mark.parametrize("loss_type", [name for name in LOSS_TYPES if name != "cispo"])
def test_gradient_equals_finite_differences_on_a_two_token_model(loss_type: str) -> None:
    """A model of two logits and two sampled tokens, each its own row, so that the sequence ratio is differentiable in
    its plain form. CISPO's loss has a stopped weight: its gradient is no difference quotient."""
    config = make_config(loss_type=loss_type, beta=0.2, entropy_coef=0.05)
    old = torch.tensor([0.1, -0.2], dtype=torch.float64).log_softmax(-1)
    ref = torch.tensor([0.5, 0.5], dtype=torch.float64).log_softmax(-1)

    def loss_at(logits: torch.Tensor) -> torch.Tensor:
        logprobs = logits.log_softmax(-1)
        return policy_loss(
            config,
            logprobs_N=logprobs,
            old_logprobs_N=old,
            ref_logprobs_N=ref,
            entropy_N=-(logprobs.exp() * logprobs).sum().expand(2),
            advantages_N=torch.tensor([1.0, -0.7], dtype=torch.float64),
            row_N=torch.tensor([0, 1]),
            weights_N=torch.tensor([0.5, 0.5], dtype=torch.float64),
        ).loss

    logits = torch.tensor([0.25, -0.1], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(loss_at(logits), logits)
    step = 1e-6
    for i in range(2):
        shift = step * torch.eye(2, dtype=torch.float64)[i]
        slope = (loss_at(logits.detach() + shift) - loss_at(logits.detach() - shift)) / (2 * step)
        assert grad[i].item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-9)


def test_masked_tokens_do_not_exist() -> None:
    config = make_config(loss_type="gspo")
    kwargs = {"old_logprobs_N": [-1.1, -0.5, -0.3], "row_N": torch.tensor([0, 0, 1])}
    out, leaf = small(config, [-1.0, math.nan, math.inf], mask_N=torch.tensor([True, False, False]), **kwargs)
    assert out.loss.item() == pytest.approx(-math.exp(0.1))
    out.loss.backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == pytest.approx([-math.exp(0.1), 0, 0])
    assert out.nonfinite_rows == ()
    assert out.metrics["num_tokens"].item() == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"logprobs": [-1.0, math.nan, -1.0, -2.0]},
        {"logprobs": [-1.0, -math.inf, -1.0, -2.0]},
        # ratio exp(2000) overflows
        {
            "logprobs": [-1.0, -1.0, -1.0, -2.0],
            "old_logprobs_N": [-1.0, -2001.0, -1.0, -2.0],
            "advantages_N": [-1.0] * 4,
        },
    ],
)
def test_a_row_that_is_not_finite_is_left_out_whole_and_named(bad: dict[str, Any]) -> None:
    """Rows 0 and 2 keep their loss; row 1 (two tokens) vanishes without a trace of NaN in any gradient."""
    kwargs = {"old_logprobs_N": [-1.0, -1.0, -1.0, -2.0]} | bad
    row_N = torch.tensor([0, 1, 1, 2])
    out, leaf = small(make_config(), kwargs.pop("logprobs"), row_N=row_N, **kwargs)
    sign = -1.0 if "advantages_N" not in bad else 1.0
    assert out.nonfinite_rows == (1,)
    assert out.loss.item() == pytest.approx(2 * sign)
    assert out.metrics["num_tokens"].item() == 2
    out.loss.backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == pytest.approx([sign, 0, 0, sign])


def test_an_empty_micro_batch_has_loss_zero_and_a_graph() -> None:
    out, leaf = small(make_config(), [])
    assert out.loss.item() == 0
    out.loss.backward()
    assert leaf.grad is not None
    assert summary(out.metrics) == {"loss": 0.0, "ratio_max": 0.0}


def test_skipped_rows_count_in_the_denominator() -> None:
    d = make_batch(3)
    config = make_config(loss_type="grpo")
    plain, more = packed_loss(config, d, [0, 1, 2, 3]), packed_loss(config, d, [0, 1, 2, 3], skipped_rows=4)
    assert more.loss.item() == pytest.approx(plain.loss.item() * 4 / 8)


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("beta", 0.1, "ref_logprobs_N"),
        ("entropy_coef", 0.1, "entropy_N"),
        ("sampler_correction", "mask", "sampler_logprobs_N"),
    ],
)
def test_a_missing_input_is_named(field: str, value: object, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        small(make_config(**{field: value}), [-1.0])
