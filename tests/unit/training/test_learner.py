"""The learner on the tiny model: what it may not depend on, and what it must do."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from chatgrpo.inference.engine import GenerationRequest, SamplingParams, generate
from chatgrpo.inference.loading import LoadedModel, load
from chatgrpo.inference.torch_engine import TorchEngine
from chatgrpo.rollouts.episode import Episode
from chatgrpo.training.batch import Row, pack
from chatgrpo.training.config import LoraConfig, TrainConfig
from chatgrpo.training.learner import Learner
from chatgrpo.training.optimization import TorchOptimization, learning_rate
from chatgrpo.training.policy import Policy

ADVANTAGES = [[1.0, -0.5, 0.25, -0.75], [0.0, 0.0, 0.0, 0.0], [-1.0, 0.5, 0.25, 0.25]]


def episodes(seed: int = 0) -> list[list[Episode]]:
    rng = random.Random(seed)
    groups = []
    for _ in range(3):
        prompt = [rng.randrange(100) for _ in range(rng.randrange(2, 6))]
        group = []
        for _ in range(4):
            reply = [rng.randrange(100) for _ in range(rng.randrange(1, 9))]
            group.append(
                Episode(
                    token_ids=(*prompt, *reply),
                    completion_mask=tuple([False] * len(prompt) + [True] * len(reply)),
                    logprobs=tuple([0.0] * len(prompt) + [-4.6] * len(reply)),
                    prompt_length=len(prompt),
                    turns=(),
                    messages=(),
                    truncated=len(reply) > 6,
                )
            )
        groups.append(group)
    return groups


def config(**fields: Any) -> TrainConfig:
    return TrainConfig(**{"optimizer": "sgd", "learning_rate": 1.0, "max_grad_norm": 1e9, **fields})


class Small:
    """An optimization whose memory is too small for more than `room` packed tokens at once."""

    def __init__(self, inner: TorchOptimization, room: int) -> None:
        self._inner, self._room = inner, room
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def module(self, batch: Any, temperature: float) -> Any:
        self.sizes.append(batch.input_ids_T.numel())
        out = self._inner.module(batch, temperature)
        if len(self.sizes) > 1 and self.sizes[-1] > self._room:  # the first one leaves gradients behind
            raise torch.OutOfMemoryError("no room")
        return out


def test_an_update_that_meets_the_end_of_memory_starts_anew_with_less(models_dir: Any) -> None:
    settings, room = config(micro_batch_tokens=26), 14
    expected = moved(models_dir, settings)
    policy = Policy(load("tiny", models_dir=models_dir).model)
    before = {name: p.detach().clone() for name, p in policy.trainable()}
    memory = Small(TorchOptimization(policy, settings), room)
    Learner(settings, policy, memory, total_updates=10).update(episodes(), ADVANTAGES)  # type: ignore[arg-type]
    assert_same({name: p.detach() - before[name] for name, p in policy.trainable()}, expected)
    assert any(size > room for size in memory.sizes[1:])
    assert memory.sizes[-1] <= room


def test_one_row_that_is_too_large_fails_the_update(models_dir: Any) -> None:
    settings = config(micro_batch_tokens=26)
    policy = Policy(load("tiny", models_dir=models_dir).model)
    memory = Small(TorchOptimization(policy, settings), 1)
    with pytest.raises(torch.OutOfMemoryError):
        Learner(settings, policy, memory, total_updates=10).update(episodes(), ADVANTAGES)  # type: ignore[arg-type]


def learner_of(loaded: LoadedModel, settings: TrainConfig) -> tuple[Learner, Policy]:
    policy = Policy(loaded.model, lora=settings.lora)
    return Learner(settings, policy, TorchOptimization(policy, settings), total_updates=10), policy


def moved(
    models_dir: Any, settings: TrainConfig, advantages: list[list[float]] = ADVANTAGES
) -> dict[str, torch.Tensor]:
    """How far every weight went in one update with plain SGD: the gradient itself."""
    learner, policy = learner_of(load("tiny", models_dir=models_dir), settings)
    before = {n: p.detach().clone() for n, p in policy.trainable()}
    learner.update(episodes(), advantages)
    return {n: p.detach() - before[n] for n, p in policy.trainable()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "sapo"])
def test_micro_batches_do_not_change_the_update(models_dir: Any, loss_type: str) -> None:
    whole = moved(models_dir, config(loss_type=loss_type, micro_batch_tokens=10_000))
    parts = moved(models_dir, config(loss_type=loss_type, micro_batch_tokens=12))
    assert max(float(v.abs().max()) for v in whole.values()) > 1e-4
    assert_same(whole, parts)


def test_rows_that_teach_nothing_are_skipped_and_still_counted(tiny: LoadedModel) -> None:
    learner, _ = learner_of(tiny, config())
    update = learner.update(episodes(), ADVANTAGES)
    assert (update.num_rows_trained, update.num_rows_skipped) == (8, 4)


def test_skipping_is_exact(models_dir: Any) -> None:
    """A tiny entropy weight makes every row count; what it adds is below the tolerance."""
    assert_same(moved(models_dir, config()), moved(models_dir, config(entropy_coef=1e-9)))


def test_nothing_to_learn_leaves_the_weights_and_moves_the_schedule(models_dir: Any) -> None:
    learner, policy = learner_of(load("tiny", models_dir=models_dir), config(num_iterations=2))
    before = [p.detach().clone() for _, p in policy.trainable()]
    learner.update(episodes(), [[0.0] * 4] * 3)
    assert learner.num_updates == 2
    assert all(torch.equal(a, p) for a, (_, p) in zip(before, policy.trainable(), strict=True))


def test_a_positive_advantage_makes_its_reply_likelier(tiny: LoadedModel) -> None:
    learner, policy = learner_of(tiny, config(learning_rate=0.1))
    group = episodes()[0]

    def likelihood(index: int) -> float:
        with torch.no_grad():
            return float(policy(pack([[Row(index=0, episode=group[index], advantage=0.0)]]), 1.0)[0].sum())

    before = [likelihood(0), likelihood(1)]
    learner.update([group[:2]], [[1.0, -1.0]])
    assert likelihood(0) > before[0]
    assert likelihood(1) < before[1]


def test_truncated_rows_teach_nothing_when_masked(tiny: LoadedModel) -> None:
    groups = episodes()
    cut = sum(e.truncated for group in (groups[0], groups[2]) for e in group)
    assert cut
    update = learner_of(tiny, config(mask_truncated_completions=True))[0].update(groups, ADVANTAGES)
    assert update.num_rows_trained == 8 - cut


def test_a_weight_that_is_not_finite_skips_the_step_and_says_so(tiny: LoadedModel) -> None:
    learner, policy = learner_of(tiny, config())
    with torch.no_grad():
        policy.model.model.norm.weight[0] = torch.nan
    before = [p.detach().clone() for _, p in policy.trainable()]
    update = learner.update(episodes(), ADVANTAGES)
    assert update.num_nonfinite_rows == 8
    for a, (_, p) in zip(before, policy.trainable(), strict=True):
        torch.testing.assert_close(p.detach(), a, equal_nan=True, atol=0, rtol=0)


def test_the_adapter_switched_off_is_the_base_and_only_it_learns(tiny: LoadedModel, dense: Any) -> None:
    settings = config(lora=LoraConfig(r=4, alpha=8), beta=0.1)
    learner, policy = learner_of(tiny, settings)
    assert all("lora_" in name for name, _ in policy.trainable())
    learner.update(episodes(), ADVANTAGES)
    learner.update(episodes(), ADVANTAGES)
    group = episodes()[0]
    batch = pack([[Row(index=i, episode=e, advantage=0.0) for i, e in enumerate(group)]])
    reference = policy.reference_logprobs(batch, 1.0)
    for local, episode in enumerate(group):
        ids = torch.tensor([episode.token_ids])
        expected = torch.log_softmax(dense(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[:, 0]
        mine = reference[batch.row_N == local]
        torch.testing.assert_close(mine, expected[episode.prompt_length - 1 :], atol=1e-5, rtol=0)
    with torch.no_grad():
        assert float((policy(batch, 1.0)[0] - reference).abs().max()) > 1e-4


def test_an_adapter_on_the_head_counts_for_learner_and_sampler_alike(tiny: LoadedModel) -> None:
    settings = config(lora=LoraConfig(r=4, alpha=8, target_modules=["q_proj", "lm_head"]))
    learner, policy = learner_of(tiny, settings)
    learner.update(episodes(), ADVANTAGES)
    learner.update(episodes(), ADVANTAGES)
    assert any(
        "lm_head" in name and float(p.detach().abs().max()) > 0 for name, p in policy.trainable() if "lora_B" in name
    )
    one = episodes()[0][0]
    request = GenerationRequest(request_id="a", prompt_ids=one.token_ids, params=SamplingParams(max_tokens=6, seed=1))
    reply = generate(TorchEngine(policy.causal_lm, tiny.template), [request])[0]
    ids = (*one.token_ids, *reply.token_ids)
    row = replace(
        one,
        token_ids=ids,
        completion_mask=tuple(i >= len(one.token_ids) for i in range(len(ids))),
        logprobs=(0.0,) * len(ids),
        prompt_length=len(one.token_ids),
    )
    with torch.no_grad():
        logprobs, _ = policy(pack([[Row(index=0, episode=row, advantage=0.0)]]), 1.0)
    assert logprobs.tolist() == pytest.approx(reply.logprobs, abs=1e-5)


def test_full_fine_tuning_keeps_its_first_weights_as_reference(tiny: LoadedModel, dense: Any) -> None:
    learner, policy = learner_of(tiny, config(beta=0.1))
    group = episodes()[0]
    batch = pack([[Row(index=i, episode=e, advantage=0.0) for i, e in enumerate(group)]])
    before = policy.reference_logprobs(batch, 1.0)
    update = learner.update(episodes(), ADVANTAGES)
    torch.testing.assert_close(policy.reference_logprobs(batch, 1.0), before, atol=0, rtol=0)
    assert update.metrics["kl"] == pytest.approx(0.0, abs=1e-6)
    assert learner.update(episodes(), ADVANTAGES).metrics["kl"] > 1e-5


def test_several_iterations_go_off_policy(tiny: LoadedModel) -> None:
    learner, _ = learner_of(tiny, config(num_iterations=3, learning_rate=0.5))
    update = learner.update(episodes(), ADVANTAGES)
    assert learner.num_updates == 3
    assert update.metrics["ratio_max"] > 1.001


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5]),
        ("cosine", [0.5, 1.0, 1.0, 0.8535533905932737, 0.5]),
    ],
)
def test_learning_rate_schedules(kind: str, expected: list[float]) -> None:
    settings = config(lr_scheduler_type=kind, warmup_steps=2)
    assert [learning_rate(settings, step, 6) for step in range(5)] == pytest.approx(expected)
