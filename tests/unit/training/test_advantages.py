"""Advantages against arithmetic written out here, and their identities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatgrpo.training.advantages import (
    advantages,
    gdpo_advantages,
    grpo_advantages,
    reinforce_pp_advantages,
    rloo_advantages,
    weighted_rewards,
    zero_variance_P,
)

NAN = float("nan")


def t(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(actual: torch.Tensor, wanted: object) -> None:
    torch.testing.assert_close(actual, t(wanted), rtol=1e-12, atol=1e-12)


def test_group_scale_uses_bessel_and_the_constant() -> None:
    # mean 1/2; squares 4 * 1/4 = 1; std = sqrt(1 / 3)
    a = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    near(grpo_advantages(t([[1, 0, 0, 1]])), [[a, -a, -a, a]])


def test_batch_scale_divides_by_the_std_of_all_rewards() -> None:
    # rewards 1 0 3 5: mean 9/4, squares (25 + 81 + 9 + 121) / 16 = 236 / 16, std = sqrt(236 / 48)
    s = math.sqrt(236 / 48) + 1e-4
    near(grpo_advantages(t([[1, 0], [3, 5]]), scale_rewards="batch"), [[0.5 / s, -0.5 / s], [-1 / s, 1 / s]])


def test_no_scale_is_dr_grpo() -> None:
    near(grpo_advantages(t([[1, 2, 6]]), scale_rewards="none"), [[-2, -1, 3]])


def test_rloo_subtracts_the_mean_of_the_others() -> None:
    # 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2
    near(rloo_advantages(t([[1, 2, 6]])), [[-3, -1.5, 4.5]])


def test_gdpo_normalises_each_reward_before_the_weighted_sum() -> None:
    # reward 1 per group: (0, 1), (0, 0); reward 2: (100, 0), (0, 100). Of a pair the std is |difference| / sqrt(2).
    z1 = 0.5 / (math.sqrt(0.5) + 1e-4)
    z2 = 50 / (100 * math.sqrt(0.5) + 1e-4)
    # weights 1 and 0.5
    combined = [-z1 + 0.5 * z2, z1 - 0.5 * z2, -0.5 * z2, 0.5 * z2]
    std = math.sqrt(sum(c * c for c in combined) / 3)
    rewards_PGK = t([[[0, 100], [1, 0]], [[0, 0], [0, 100]]])
    wanted = [c / (std + 1e-4) for c in combined]
    near(gdpo_advantages(rewards_PGK, t([1, 0.5])), [wanted[:2], wanted[2:]])


def test_gdpo_leaves_out_missing_rewards_and_rows() -> None:
    # one reward of weight 2; the third row has none: pairs as above, over 2 rows
    z = 2 * 0.5 / (math.sqrt(0.5) + 1e-4)
    a = z / (math.sqrt(2 * z * z) + 1e-4)
    near(gdpo_advantages(t([[[0], [1], [NAN]]]), t([2])), [[-a, a, 0]])


def test_reinforce_pp_whitens_over_tokens() -> None:
    # centred -1/2, 1/2 with 1 and 3 tokens: mean (-.5 + 1.5) / 4 = 1/4,
    # variance (1 * (3/4)^2 + 3 * (1/4)^2) / (4 - 1) = (9 + 3) / 16 / 3 = 1/4
    s = math.sqrt(0.25 + 1e-8)
    near(reinforce_pp_advantages(t([[0, 1]]), torch.tensor([[1, 3]])), [[-0.75 / s, 0.25 / s]])


def test_reinforce_pp_counts_no_token_of_a_row_without_reward() -> None:
    s = math.sqrt(0.25 + 1e-8)
    actual = reinforce_pp_advantages(t([[0, 1, NAN]]), torch.tensor([[1, 3, 100]]))
    near(actual, [[-0.75 / s, 0.25 / s, 0]])


def test_rewards_are_summed_by_weight_and_missing_ones_skipped() -> None:
    summed = weighted_rewards(t([[[1, 2], [NAN, 2], [NAN, NAN]]]), t([3, 0.5]))
    assert summed[0, :2].tolist() == [4, 1]
    assert summed[0, 2].isnan()


def test_a_missing_reward_is_left_out_of_mean_and_std() -> None:
    a = 0.5 / (math.sqrt(0.5) + 1e-4)
    near(grpo_advantages(t([[0, NAN, 1]])), [[-a, 0, a]])
    near(rloo_advantages(t([[0, NAN, 1]])), [[-1, 0, 1]])
    # batch: rewards 0 1 4: mean 5/3, squares (25 + 4 + 49) / 9, std sqrt(78 / 18)
    s = math.sqrt(78 / 18) + 1e-4
    near(grpo_advantages(t([[0, NAN, 1], [NAN, 4, NAN]]), scale_rewards="batch"), [[-0.5 / s, 0, 0.5 / s], [0, 0, 0]])


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "gdpo", "reinforce_pp"])
def test_groups_without_any_reward_get_zero(estimator: str) -> None:
    rewards_PG = t([[NAN, NAN], [0.0, 1.0]])
    a = advantages(
        rewards_PG,
        estimator=estimator,
        rewards_PGK=rewards_PG.unsqueeze(-1),
        weights_K=t([1]),
        num_tokens_PG=torch.ones(2, 2),
    )
    assert a[0].tolist() == [0, 0]
    assert a[1, 0] < 0 < a[1, 1]
    nothing = advantages(
        rewards_PG[:1],
        estimator=estimator,
        rewards_PGK=rewards_PG[:1].unsqueeze(-1),
        weights_K=t([1]),
        num_tokens_PG=torch.ones(1, 2),
    )
    assert nothing.tolist() == [[0, 0]]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_give_exact_zeros_though_their_mean_is_rounded(scale: str) -> None:
    rewards_PG = t([[0.05, 0.05, 0.05]])
    assert (rewards_PG - rewards_PG.mean()).abs().max() > 0
    assert grpo_advantages(rewards_PG, scale_rewards=scale).tolist() == [[0, 0, 0]]
    assert rloo_advantages(rewards_PG).tolist() == [[0, 0, 0]]


def test_zero_variance_is_exact_equality() -> None:
    rewards_PG = t([[1, 1, 1], [1, 1 + 1e-15, 1], [NAN, 2, 2], [NAN, NAN, NAN], [NAN, 1, 2], [-0.0, 0.0, 0.0]])
    assert zero_variance_P(rewards_PG).tolist() == [True, False, True, True, False, True]


def test_dispatch_names_what_is_missing() -> None:
    with pytest.raises(ValueError, match="rewards_PGK"):
        advantages(t([[0, 1]]), estimator="gdpo")
    with pytest.raises(ValueError, match="num_tokens_PG"):
        advantages(t([[0, 1]]), estimator="reinforce_pp")
    with pytest.raises(ValueError, match="inf is not finite"):
        advantages(t([[0, math.inf]]), estimator="grpo")


def test_the_type_of_the_rewards_is_kept() -> None:
    for estimator in (grpo_advantages, rloo_advantages):
        assert estimator(torch.tensor([[0.0, 1.0]])).dtype == torch.float32


groups = st.integers(2, 6).flatmap(
    lambda size: st.lists(
        st.lists(st.one_of(st.floats(-10, 10, width=32), st.just(NAN)), min_size=size, max_size=size),
        min_size=1,
        max_size=5,
    )
)


@given(groups)
def test_grpo_equals_the_loop(rewards: list[list[float]]) -> None:
    for scale in ("group", "batch", "none"):
        actual = grpo_advantages(t(rewards), scale_rewards=scale)
        everything = [r for group in rewards for r in group if not math.isnan(r)]
        for row, group in zip(actual.tolist(), rewards, strict=True):
            valid = [r for r in group if not math.isnan(r)]
            for a, r in zip(row, group, strict=True):
                if math.isnan(r) or len(set(valid)) == 1:
                    assert a == 0
                    continue
                scales = {"group": _std(valid) + 1e-4, "batch": _std(everything) + 1e-4, "none": 1.0}
                assert a == pytest.approx((r - sum(valid) / len(valid)) / scales[scale], rel=1e-6, abs=1e-9)


@given(groups)
def test_rloo_is_the_centred_reward_times_g_over_g_minus_1(rewards: list[list[float]]) -> None:
    for row, group in zip(rloo_advantages(t(rewards)).tolist(), rewards, strict=True):
        valid = [r for r in group if not math.isnan(r)]
        for i, r in enumerate(group):
            if math.isnan(r) or len(valid) == 1:
                assert row[i] == 0
                continue
            others = (sum(valid) - r) / (len(valid) - 1)
            assert row[i] == pytest.approx(r - others, abs=1e-9)
            assert row[i] == pytest.approx(len(valid) / (len(valid) - 1) * (r - sum(valid) / len(valid)), abs=1e-9)


@given(groups, st.data())
def test_reinforce_pp_equals_the_loop_over_tokens(rewards: list[list[float]], data: st.DataObject) -> None:
    count = st.integers(1, 4)
    lengths = [[data.draw(count) for _ in group] for group in rewards]
    tokens = []  # the centred reward of every token
    for group, sizes in zip(rewards, lengths, strict=True):
        for r, n in zip(group, sizes, strict=True):
            tokens += [] if math.isnan(r) else [_centred(r, group)] * n
    mean = sum(tokens) / max(len(tokens), 1)
    scale = math.sqrt(_std(tokens) ** 2 + 1e-8) if tokens else 1.0
    actual = reinforce_pp_advantages(t(rewards), torch.tensor(lengths))
    for row, group in zip(actual.tolist(), rewards, strict=True):
        for a, r in zip(row, group, strict=True):
            assert a == pytest.approx(0 if math.isnan(r) else (_centred(r, group) - mean) / scale, rel=1e-6, abs=1e-6)


@given(groups, st.data())
def test_gdpo_equals_the_loop(rewards: list[list[float]], data: st.DataObject) -> None:
    second = [[data.draw(st.sampled_from([0.0, 1.0, NAN])) for _ in group] for group in rewards]
    weights = [1.0, 0.25]
    combined = []
    for one, two in zip(rewards, second, strict=True):
        for pair in zip(one, two, strict=True):
            parts = [
                w * _centred(r, group) / (_std([g for g in group if not math.isnan(g)]) + 1e-4)
                for w, r, group in zip(weights, pair, (one, two), strict=True)
                if not math.isnan(r)
            ]
            combined.append(sum(parts) if parts else NAN)
    valid = [c for c in combined if not math.isnan(c)]
    scale = _std(valid) + 1e-4 if valid else 1.0
    actual = gdpo_advantages(torch.stack([t(rewards), t(second)], dim=-1), t(weights)).flatten().tolist()
    for a, c in zip(actual, combined, strict=True):
        assert a == pytest.approx(0 if math.isnan(c) else (c - sum(valid) / len(valid)) / scale, rel=1e-5, abs=1e-5)


@given(groups, st.randoms())
def test_order_within_a_group_and_other_groups_do_not_matter(rewards: list[list[float]], rng) -> None:
    order = list(range(len(rewards[0])))
    rng.shuffle(order)
    rewards_PG = t(rewards)
    for estimator in (grpo_advantages, rloo_advantages):
        torch.testing.assert_close(estimator(rewards_PG[:, order]), estimator(rewards_PG)[:, order])
        torch.testing.assert_close(estimator(rewards_PG[:1]), estimator(rewards_PG)[:1])


def _centred(reward: float, group: list[float]) -> float:
    valid = [r for r in group if not math.isnan(r)]
    return 0.0 if len(set(valid)) == 1 else reward - sum(valid) / len(valid)


def _std(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1))
