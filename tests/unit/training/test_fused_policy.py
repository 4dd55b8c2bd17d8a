"""The fast path against the model's own modules under autograd: log-probs, entropies and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chatgrpo.inference.activation_tape import ActivationTape
from chatgrpo.inference.attention import ATTENTION
from chatgrpo.inference.engine import GenerationRequest, SamplingParams, generate
from chatgrpo.inference.llama_weights import LlamaWeights
from chatgrpo.inference.loading import LoadedModel, load
from chatgrpo.inference.torch_engine import TorchEngine
from chatgrpo.rollouts.episode import Episode
from chatgrpo.training.batch import MicroBatch, Row, pack
from chatgrpo.training.config import LoraConfig, TrainConfig
from chatgrpo.training.fused_policy import remember
from chatgrpo.training.learner import Learner
from chatgrpo.training.optimization import TorchOptimization
from chatgrpo.training.policy import Policy

LORA = LoraConfig(r=4, alpha=8)
Gradients = dict[str, torch.Tensor]


def llama(models_dir: Path) -> Any:
    return load("tiny", models_dir=models_dir).model


def llama_with_biases_tied(models_dir: Path) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    config = LlamaConfig(
        **shape, num_key_value_heads=2, vocab_size=101, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    )
    return made(config, LlamaForCausalLM)


def qwen2(models_dir: Path) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape: dict[str, Any] = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
    }
    return made(Qwen2Config(**shape, num_key_value_heads=3, vocab_size=101), Qwen2ForCausalLM)


def qwen3(models_dir: Path) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    return made(Qwen3Config(**shape, num_attention_heads=6, num_key_value_heads=3, vocab_size=101), Qwen3ForCausalLM)


def made(config: Any, cls: Any) -> Any:
    config._attn_implementation = ATTENTION
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def policy_of(model: Any, lora: LoraConfig | None, *, fused: bool) -> Policy:
    torch.manual_seed(1)
    policy = Policy(model, lora=lora, fused=fused)
    with torch.no_grad():
        for name, parameter in policy.trainable():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    policy.weights_changed()
    return policy


def batch() -> MicroBatch:
    generator = torch.Generator().manual_seed(2)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(100, (count,), generator=generator).tolist())

    groups = []
    for prompt_length, lengths in ((9, (1, 4, 7)), (3, (6,)), (1, (2, 2))):
        prompt = (0, *ids(prompt_length - 1))  # 0 is the padding token of the tiny model
        groups.append([Row(index=0, episode=episode(prompt, ids(n)), advantage=float(n)) for n in lengths])
    return pack(groups)


def episode(prompt: tuple[int, ...], reply: tuple[int, ...], logprobs: tuple[float, ...] | None = None) -> Episode:
    return Episode(
        token_ids=(*prompt, *reply),
        completion_mask=(*([False] * len(prompt)), *([True] * len(reply))),
        logprobs=(*([0.0] * len(prompt)), *(logprobs or [0.0] * len(reply))),
        prompt_length=len(prompt),
        turns=(),
        messages=(),
        truncated=False,
    )


def learnt(policy: Policy, rows: MicroBatch, *, entropy: float = 0.3) -> tuple[torch.Tensor, torch.Tensor, Gradients]:
    for _, parameter in policy.trainable():
        parameter.grad = None
    logprobs, entropies = policy(rows, 0.8)
    ((logprobs * rows.advantages_N).sum() + entropy * entropies.sum()).backward()
    gradients = {name: p.grad.clone() for name, p in policy.trainable() if p.grad is not None}
    return logprobs.detach(), entropies.detach(), gradients


def assert_same_gradients(ours: Gradients, expected: Gradients) -> None:
    """As one vector to 1e-5; a single weight whose gradient all but cancels has more noise of its own."""
    assert ours.keys() == expected.keys()
    difference = {name: torch.linalg.norm(ours[name] - expected[name]) for name in expected}
    whole = torch.linalg.norm(torch.stack([torch.linalg.norm(g) for g in expected.values()]))
    assert torch.linalg.norm(torch.stack(list(difference.values()))) <= 1e-5 * whole
    for name, norm in difference.items():
        assert norm <= 1e-4 * torch.linalg.norm(expected[name]), name


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("make", [llama, llama_with_biases_tied, qwen2, qwen3])
def test_the_fast_path_learns_what_autograd_learns(
    models_dir: Path, make: Callable[[Path], Any], lora: LoraConfig | None
) -> None:
    plain, fast = (policy_of(make(models_dir), lora, fused=fused) for fused in (False, True))
    assert plain.weights is None
    assert fast.weights is not None
    logprobs, entropies, gradients = learnt(plain, batch())
    ours = learnt(fast, batch())
    torch.testing.assert_close(ours[0], logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[1], entropies, atol=1e-5, rtol=0)
    assert ours[2].keys() == gradients.keys() == {name for name, _ in plain.trainable()}
    assert_same_gradients(ours[2], gradients)


def test_gradients_of_micro_batches_add_up(models_dir: Path) -> None:
    policy, rows = policy_of(llama(models_dir), None, fused=True), batch()
    once = learnt(policy, rows, entropy=0.0)[2]
    policy(rows, 0.8)[0].mul(rows.advantages_N).sum().backward()
    assert_same_gradients({name: p.grad / 2 for name, p in policy.trainable() if p.grad is not None}, once)


def test_a_forward_leaves_alone_what_an_earlier_one_still_needs(models_dir: Path) -> None:
    policy, rows = policy_of(llama(models_dir), None, fused=True), batch()

    def loss(temperature: float) -> Any:
        return policy(rows, temperature)[0].mul(rows.advantages_N).sum()

    def gradients() -> Gradients:
        found = {name: p.grad for name, p in policy.trainable() if p.grad is not None}
        policy.zero_grad()
        return found

    for temperature in (0.8, 1.2):
        loss(temperature).backward()
    one_after_the_other = gradients()
    first, second = loss(0.8), loss(1.2)
    second.backward()
    first.backward()
    assert_same_gradients(gradients(), one_after_the_other)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_activations_of_the_rollout_teach_what_a_new_forward_teaches(
    tiny: LoadedModel, lora: LoraConfig | None
) -> None:
    policy = policy_of(tiny.model, lora, fused=True)
    assert policy.weights is not None
    policy.tape = ActivationTape(policy.weights, max_tokens=1000)
    rows = sampled(policy, tiny)
    assert remember(policy.tape, rows) is not None
    reused = learnt(policy, rows)
    policy.tape.clear()
    assert remember(policy.tape, rows) is None
    again = learnt(policy, rows)
    torch.testing.assert_close(reused[0], again[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(reused[1], again[1], atol=1e-5, rtol=0)
    assert_same_gradients(reused[2], again[2])


def test_a_step_with_nothing_to_learn_clears_the_tape_and_keeps_what_the_model_speaks_with(tiny: LoadedModel) -> None:
    policy = policy_of(tiny.model, LORA, fused=True)
    assert policy.weights is not None
    policy.tape = ActivationTape(policy.weights, max_tokens=1000)
    rows = sampled(policy, tiny)
    spoken = policy.weights.layers[0].qkv.spoken
    engine = TorchEngine(policy.causal_lm, tiny.template, weights=policy.weights)
    config = TrainConfig(lora=LORA)
    learner = Learner(config, policy, TorchOptimization(policy, config), total_updates=10)
    groups = [[row.episode] for row in rows.rows]
    update = learner.update(groups, [[0.0] for _ in groups])
    engine.weights_changed(1, same=not update.weights_changed)
    assert remember(policy.tape, rows) is None
    assert engine.weight_version == 1
    assert policy.weights.layers[0].qkv.spoken is spoken
    update = learner.update(groups, [[1.0] for _ in groups])
    engine.weights_changed(2, same=not update.weights_changed)
    assert policy.weights.layers[0].qkv.spoken is not spoken


def test_a_full_tape_means_a_new_forward(tiny: LoadedModel) -> None:
    policy = policy_of(tiny.model, None, fused=True)
    assert policy.weights is not None
    policy.tape = ActivationTape(policy.weights, max_tokens=40)
    rows = sampled(policy, tiny)
    assert remember(policy.tape, rows) is None
    assert learnt(policy, rows)[2]


def test_changed_weights_clear_the_tape_and_merge_adapters_anew(tiny: LoadedModel) -> None:
    policy = policy_of(tiny.model, LORA, fused=True)
    assert policy.weights is not None
    policy.tape = ActivationTape(policy.weights, max_tokens=1000)
    rows = sampled(policy, tiny)
    before = policy(rows, 1.0)[0]
    with torch.no_grad():
        for _, parameter in policy.trainable():
            parameter.add_(0.05)
    policy.weights_changed()
    plain = Policy.__new__(Policy)
    plain.__dict__.update(policy.__dict__)
    plain.weights = None
    expected = plain(rows, 1.0)[0]
    torch.testing.assert_close(policy(rows, 1.0)[0], expected, atol=1e-5, rtol=0)
    assert not torch.allclose(before, expected, atol=1e-3)


def test_models_of_another_wiring_take_the_general_path() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM

    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    phi3 = Phi3ForCausalLM(Phi3Config(**shape, num_key_value_heads=1, vocab_size=50, pad_token_id=0))
    assert LlamaWeights.of(phi3) is None
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50, n_positions=32))
    assert LlamaWeights.of(gpt2) is None


def test_parameters_are_views_of_the_fused_weights(tiny: LoadedModel) -> None:
    weights = LlamaWeights.of(tiny.model)
    assert weights is not None
    up = tiny.model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        up.fill_(7.0)
    assert (weights.layers[1].gate_up.weight[up.shape[0] :] == 7.0).all()


def sampled(policy: Policy, tiny: LoadedModel) -> MicroBatch:
    """Two groups that the engine just generated, one of them in a conversation of two turns."""
    engine = TorchEngine(policy.causal_lm, tiny.template, weights=policy.weights, max_batch_size=4)
    prompts = [(4, 20, 30, 1, 5), (4, 9, 1, 5)]
    requests = [
        GenerationRequest(
            request_id=f"{q}/{g}",
            prompt_ids=prompt,
            params=SamplingParams(max_tokens=3 + 2 * g, seed=10 * q + g, temperature=0.8, ignore_eos=True),
            keep=True,
        )
        for q, prompt in enumerate(prompts)
        for g in range(3)
    ]
    with engine.recording(policy.tape):
        completions = generate(engine, requests)
        episodes = [episode(r.prompt_ids, c.token_ids, c.logprobs) for r, c in zip(requests, completions, strict=True)]
        second = GenerationRequest(
            request_id="second",
            prompt_ids=(*episodes[0].token_ids, 4, 7, 5),
            params=SamplingParams(max_tokens=5, seed=99, temperature=0.8, ignore_eos=True),
            continues="0/0",
        )
        (reply,) = generate(engine, [second])
    first = episodes[0]
    episodes[0] = Episode(
        token_ids=(*second.prompt_ids, *reply.token_ids),
        completion_mask=(*first.completion_mask, False, False, False, *([True] * len(reply.token_ids))),
        logprobs=(*first.logprobs, 0.0, 0.0, 0.0, *reply.logprobs),
        prompt_length=first.prompt_length,
        turns=(),
        messages=(),
        truncated=False,
    )
    rows = [Row(index=i, episode=e, advantage=(-1.0) ** i) for i, e in enumerate(episodes)]
    return pack([rows[:3], rows[3:]])
