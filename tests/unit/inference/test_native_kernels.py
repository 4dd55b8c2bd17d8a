"""The kernels against the torch code that they stand for. Where they cannot be built there is nothing to compare."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from chatgrpo.inference import products
from chatgrpo.inference.activation_tape import ActivationTape, Recorder
from chatgrpo.inference.attention import SegmentLayout
from chatgrpo.inference.engine import GenerationRequest, SamplingParams, generate
from chatgrpo.inference.kv_cache import DecodeLayout, KVCache, PrefillLayout, Prefix, Prompt
from chatgrpo.inference.llama_forward import Rotary, attend, forward, gated, rms_norm
from chatgrpo.inference.llama_weights import LlamaWeights
from chatgrpo.inference.loading import LoadedModel
from chatgrpo.inference.native import build, kernels
from chatgrpo.inference.sampling import sample
from chatgrpo.inference.torch_engine import TorchEngine
from chatgrpo.training import llama_backward

needs_kernels = pytest.mark.skipif(not kernels.is_available(), reason="no C++ compiler, so there are no kernels")


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Call `.setattr(*OFF)` on it to go on without kernels."""
    return monkeypatch


OFF = (kernels, "library", lambda: None)


@needs_kernels
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 8, 9, 32, 131])
@pytest.mark.parametrize(("num_in", "num_out"), [(1, 1), (33, 47), (64, 48), (70, 49), (128, 200)])
def test_products_of_every_shape(rows: int, num_in: int, num_out: int) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, num_in), torch.randn(num_out, num_in)
    bias, other = torch.randn(num_out), torch.randn(rows, num_out)
    packed = products.pack(weight)
    exact = (x.double() @ weight.double().T).float()
    torch.testing.assert_close(products.linear(x, packed), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(products.linear_add(x, packed, bias, other), exact + bias + other, rtol=1e-5, atol=1e-5)
    turned = kernels.pack(weight.T)
    torch.testing.assert_close(kernels.linear(other, turned), other @ weight, rtol=1e-5, atol=1e-4)


@needs_kernels
def test_a_row_has_the_same_bits_in_any_company() -> None:
    torch.manual_seed(0)
    x, packed = torch.randn(40, 100), products.pack(torch.randn(90, 100))
    together = products.linear(x, packed)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            alone = torch.cat([products.linear(x[i : i + 1], packed) for i in range(40)])
            assert torch.equal(alone, together)
    finally:
        torch.set_num_threads(threads)


def _filled_cache(weights: LlamaWeights, rows: int, length: int) -> KVCache:
    cache = KVCache(len(weights.layers), torch.float32, torch.device("cpu"))
    cache.reserve(rows, length + 2)
    for held in cache.whole(weights.num_kv_heads, weights.head_dim):
        held[:, :rows, :, :length].normal_()
    return cache


@needs_kernels
@pytest.mark.parametrize("with_prefix", [False, True])
@pytest.mark.parametrize("num_rows", [1, 5])
def test_a_decode_step_is_the_forward_of_one_token_a_row(
    tiny: LoadedModel, without: pytest.MonkeyPatch, num_rows: int, with_prefix: bool
) -> None:
    torch.manual_seed(1)
    weights = LlamaWeights.of(tiny.model)
    assert weights is not None
    assert weights.decode_kernel() is not None
    lengths = torch.tensor([3, 40, 0, 17, 31][:num_rows])
    prefixes = []
    if with_prefix:
        prefix = Prefix(len(weights.layers), 37)
        shape = (weights.num_kv_heads, 37, weights.head_dim)
        prefix.keys, prefix.values = ([torch.randn(shape) for _ in weights.layers] for _ in range(2))
        prefixes = [(prefix, torch.arange(num_rows)[::2])]
    positions = lengths.clone()
    positions[::2] += 37 if with_prefix else 0
    ids = torch.arange(num_rows) + 7
    outputs, caches = [], []
    for off in (False, True):
        if off:
            without.setattr(*OFF)
            weights.release()
            assert weights.decode_kernel() is None
        torch.manual_seed(2)
        cache = _filled_cache(weights, num_rows, 41)
        outputs.append(forward(weights, ids, positions, DecodeLayout(cache, lengths, prefixes)))
        caches.append(cache.whole(weights.num_kv_heads, weights.head_dim))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(*caches, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("vocabulary", [5, 103, 5000])
def test_sampling_draws_what_torch_draws(without: pytest.MonkeyPatch, vocabulary: int) -> None:
    torch.manual_seed(3)
    logits = torch.randn(64, vocabulary) * 3
    logits[:, 1] = float("-inf")
    arguments = {
        "temperature_N": torch.tensor([0.0, 0.5, 1.0, 2.0]).repeat(16),
        "top_p_N": torch.ones(64),
        "top_k_N": torch.zeros(64, dtype=torch.long),
        "uniform_N": torch.linspace(0, 1, 65)[:64],
    }
    mine = sample(logits, **arguments, with_entropy=True)
    without.setattr(*OFF)
    theirs = sample(logits, **arguments, with_entropy=True)
    assert torch.equal(mine.tokens_N, theirs.tokens_N)
    torch.testing.assert_close(mine.logprobs_N, theirs.logprobs_N, rtol=1e-5, atol=1e-5)
    assert mine.entropies_N is not None
    torch.testing.assert_close(mine.entropies_N, theirs.entropies_N, rtol=1e-5, atol=1e-5)


@needs_kernels
def test_the_largest_uniform_finds_a_token_that_has_a_chance() -> None:
    logits = torch.full((1, 2000), float("-inf"))
    logits[0, [3, 900]] = torch.tensor([0.0, 1.0])
    last = torch.nextafter(torch.tensor([1.0]), torch.tensor([0.0]))
    tokens, logprobs, _ = kernels.sample(logits, torch.ones(1), last)
    assert tokens.tolist() == [900]
    assert logprobs.item() == pytest.approx(torch.log_softmax(torch.tensor([0.0, 1.0]), 0)[1].item(), abs=1e-6)


@pytest.mark.parametrize("kernel", [pytest.param(True, marks=needs_kernels), False])
@pytest.mark.parametrize("width", [5, 64])
def test_gates_and_norms_have_the_gradients_of_autograd(without: pytest.MonkeyPatch, kernel: bool, width: int) -> None:
    if not kernel:
        without.setattr(*OFF)
    torch.manual_seed(4)
    gate_up = (torch.randn(9, 2 * width) * 3).requires_grad_()
    d_act, add = torch.randn(9, width), torch.randn(9, width)
    gate, up = gate_up.chunk(2, -1)
    act = nn.functional.silu(gate) * up
    torch.testing.assert_close(gated(gate_up.detach()), act.detach(), rtol=1e-5, atol=1e-6)
    (expected,) = torch.autograd.grad(act, gate_up, d_act)
    found = llama_backward.gated_backward(gate_up.detach(), d_act)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    x, weight = torch.randn(9, width).requires_grad_(), torch.randn(width)
    (expected,) = torch.autograd.grad(nn.functional.rms_norm(x, (width,), weight, 1e-5), x, d_act)
    for plus in (None, add):
        found = llama_backward.norm_backward(x.detach(), weight, 1e-5, d_act.clone(), plus)
        torch.testing.assert_close(found, expected if plus is None else expected + plus, rtol=1e-5, atol=1e-5)


def test_without_kernels_the_engine_says_the_same(tiny: LoadedModel, without: pytest.MonkeyPatch) -> None:
    said = []
    for off in (False, True):
        if off:
            without.setattr(*OFF)
        engine = TorchEngine(tiny.model, tiny.template, weights=LlamaWeights.of(tiny.model))
        for seed in range(4):
            params = SamplingParams(max_tokens=12, seed=seed, ignore_eos=True)
            engine.add(GenerationRequest(request_id=str(seed), prompt_ids=tuple(range(5, 30)), params=params))
        events = []
        while engine.has_work:
            events += engine.step()
        said.append(sorted((e.request_id, e.token_id) for e in events))
    assert said[0] == said[1]


def test_weights_that_only_speak_say_the_same_and_hold_nothing_twice(tiny: LoadedModel) -> None:
    said = []
    for only_speaks in (False, True):
        weights = LlamaWeights.of(tiny.model, only_speaks=only_speaks)
        engine = TorchEngine(tiny.model, tiny.template, weights=weights)
        params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
        engine.add(GenerationRequest(request_id="0", prompt_ids=tuple(range(5, 30)), params=params))
        events = []
        while engine.has_work:
            events += engine.step()
        said.append([e.token_id for e in events])
    assert said[0] == said[1]
    held = {p.untyped_storage().nbytes() for n, p in tiny.model.named_parameters() if "_proj" in n}
    assert held == {4}, "a float each stands for the layers' weights"


def test_no_compiler_means_no_kernels(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert build.library.__wrapped__() is None
    assert "no C++ compiler" in caplog.text


def test_a_compiler_that_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "disk is full" >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert build.library.__wrapped__() is None
    assert "disk is full" in caplog.text
    assert list((tmp_path / "cache").rglob("*.so")) == []


def test_the_variable_switches_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATGRPO_NATIVE", "0")
    assert build.library.__wrapped__() is None


@needs_kernels
@pytest.mark.parametrize("dim", [16, 20, 64])
@pytest.mark.parametrize("group", [1, 3])
def test_attention_over_segments_has_the_values_and_gradients_of_torch(
    without: pytest.MonkeyPatch, dim: int, group: int
) -> None:
    torch.manual_seed(5)
    # Two groups, one continuation of another prompt's kind, lengths around the sizes of tiles and panels.
    prompts = [range(50), range(50, 57)]
    segments = [(range(0), prompts[0]), (prompts[0], range(57, 58)), (prompts[0], range(58, 107))]
    segments += [(range(0), prompts[1]), (prompts[1], range(107, 120)), (prompts[1], range(120, 217))]
    layout = SegmentLayout(segments)
    kv_heads = 2
    qkv = torch.randn(217, (group + 2) * kv_heads, dim).requires_grad_()
    scale = dim**-0.5
    d_out = torch.randn(217, group * kv_heads * dim)
    expected = attend(layout, 0, qkv, group * kv_heads, kv_heads, scale)
    (d_expected,) = torch.autograd.grad(expected, qkv, d_out)
    leaf = qkv.detach()
    found = attend(layout, 0, leaf, group * kv_heads, kv_heads, scale)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)
    again, d_found = kernels.attention_backward(leaf, layout.for_kernels, group * kv_heads, kv_heads, scale, d_out)
    assert torch.equal(again, found)
    torch.testing.assert_close(d_found, d_expected, rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("dim", [16, 20, 64])
@pytest.mark.parametrize("group", [1, 3])
def test_attention_of_a_prefill_has_the_values_of_torch_and_leaves_the_same_cache(
    without: pytest.MonkeyPatch, dim: int, group: int
) -> None:
    num_layers, kv_heads, rows, length = 2, 2, 6, 120
    shape = (num_layers, rows, kv_heads, length, dim)
    torch.manual_seed(6)
    held = [torch.randn(shape) for _ in range(2)]
    shared = [[torch.randn(kv_heads, 70, dim) for _ in range(num_layers)] for _ in range(2)]
    # New rows, rows that go on with and without a prefix, one that fills a prefix; sizes around tiles and panels.
    qkv = torch.randn(198, (group + 2) * kv_heads, dim)
    results = []
    for off in (False, True):
        if off:
            without.setattr(*OFF)
        cache = KVCache(num_layers, torch.float32, torch.device("cpu"))
        cache.reserve(rows, length)
        for mine, given in zip(cache.whole(kv_heads, dim), held, strict=True):
            mine[:, :rows, :, :length] = given
        known, filled = Prefix(num_layers, 70), Prefix(num_layers, 50)
        known.keys, known.values = shared
        layout = PrefillLayout(
            cache,
            [
                Prompt(range(49), range(2)),
                Prompt(range(49, 50), range(2, 3), past=48),
                Prompt(range(50, 147), range(3, 4), past=3, prefix=known),
                Prompt(range(147, 148), range(4, 5), past=0, prefix=known),
                Prompt(range(148, 198), range(5, 6), prefix=filled, fills=True),
            ],
        )
        heads = group * kv_heads
        out = [attend(layout, layer, qkv * (layer + 1), heads, kv_heads, dim**-0.5) for layer in range(num_layers)]
        results.append((*out, *(x.clone() for x in cache.whole(kv_heads, dim)), *filled.keys, *filled.values))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("vocabulary", [5, 103, 5000])
def test_log_probabilities_are_those_of_torch(vocabulary: int) -> None:
    torch.manual_seed(7)
    logits = torch.randn(9, vocabulary) * 5
    logits[:, 1] = float("-inf")
    tokens = torch.randint(2, vocabulary, (9,))
    log_p = torch.log_softmax(logits.double() * 0.7, -1)
    expected = torch.special.entr(log_p.exp()).sum(-1)
    logprobs, entropies = kernels.logprobs(logits, tokens, 0.7)
    torch.testing.assert_close(logprobs, log_p.gather(-1, tokens[:, None])[:, 0].float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropies, expected.float(), rtol=1e-5, atol=1e-5)


@needs_kernels
def test_a_row_whose_prompt_is_held_once_has_the_same_bits_as_alone(tiny: LoadedModel) -> None:
    prompt = tuple(7 + i % 80 for i in range(45))
    requests = [
        GenerationRequest(request_id=str(i), prompt_ids=prompt, params=SamplingParams(max_tokens=24, seed=i))
        for i in range(3)
    ]
    weights = LlamaWeights.of(tiny.model)
    together = generate(TorchEngine(tiny.model, tiny.template, weights=weights), requests)
    alone = [generate(TorchEngine(tiny.model, tiny.template, weights=weights), [r])[0] for r in requests]
    assert together == alone


@needs_kernels
@pytest.mark.parametrize("num_rows", [1, 40])
def test_a_product_is_written_where_it_is_wanted(num_rows: int) -> None:
    torch.manual_seed(8)
    x, weight, other = torch.randn(num_rows, 70), products.pack(torch.randn(49, 70)), torch.randn(num_rows, 49)
    held = torch.full((3, num_rows + 2, 49), 7.0)
    expected = products.linear_add(x, weight, None, other)
    assert products.linear_add(x, weight, None, other, held[1, 1:-1]).data_ptr() == held[1, 1].data_ptr()
    assert torch.equal(held[1, 1:-1], expected)
    held[1, 1:-1] = 7.0
    assert bool((held == 7.0).all())
    own = other.clone()
    assert torch.equal(products.linear_add(x, weight, None, own, own), expected)


@needs_kernels
@pytest.mark.parametrize(("num_rows", "width"), [(1, 20), (33, 37), (5, 64)])
def test_norms_and_rotations_are_those_of_torch(without: pytest.MonkeyPatch, num_rows: int, width: int) -> None:
    torch.manual_seed(9)
    x, weight = torch.randn(num_rows, width), torch.randn(width)
    heads = torch.randn(num_rows, 5, 2 * width)
    angles = torch.randn(num_rows, 1, width)
    rotary = Rotary(angles.cos(), angles.sin())
    results = []
    for off in (False, True):
        if off:
            without.setattr(*OFF)
        turned, back = heads.clone(), heads.clone()
        rotary.turn_(turned[:, :3])
        rotary.turn_(back[:, :3], back=True)
        results.append((rms_norm(x, weight, 1e-5), turned, back))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@needs_kernels
def test_rows_are_taken_from_every_layer() -> None:
    source, target = torch.randn(5, 9, 7)[1:4], torch.zeros(3, 20, 7)
    rows = torch.tensor([8, 0, 3, 3])
    kernels.take_rows(source, rows, target[:, 2:6])
    assert torch.equal(target[:, 2:6], source[:, rows])
    assert not target[:, :2].any()
    assert not target[:, 6:].any()
    with pytest.raises(AssertionError):
        kernels.take_rows(source, torch.tensor([9]), target[:, :1])


@needs_kernels
def test_a_tape_holds_what_was_computed_wherever_it_was_written(tiny: LoadedModel, without: pytest.MonkeyPatch) -> None:
    weights = LlamaWeights.of(tiny.model)
    assert weights is not None
    ids = torch.arange(20) + 7
    held = []
    for direct in (True, False):
        if not direct:
            without.setattr(Recorder, "views", lambda self: None)
        tape = ActivationTape(weights, max_tokens=64)
        tape.record(3)
        recorded = tape.record(20)
        assert recorded is not None
        layout = SegmentLayout([(range(0), range(20))])
        hidden = forward(weights, ids, torch.arange(20), layout, recorded[0])
        recording = tape.recording(torch.tensor(recorded[1]))
        layers = [recording.layer(index) for index in range(len(weights.layers))]
        held.append([hidden, recording.last(), *(t for a in layers for t in (a.x, a.qkv, a.middle, a.gate_up))])
    assert all(torch.equal(a, b) for a, b in zip(*held, strict=True))
