"""Adapters side by side against engines of merged single adapters, on the tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from chatgrpo.errors import InvalidRequest
from chatgrpo.inference import adapted_weights
from chatgrpo.inference.adapters import read_adapter
from chatgrpo.inference.engine import Completion, GenerationRequest, SamplingParams, generate
from chatgrpo.inference.llama_weights import LlamaWeights
from chatgrpo.inference.loading import LoadedModel, load
from chatgrpo.inference.shared_base import SharedBase
from chatgrpo.inference.torch_engine import TorchEngine

ADAPTERS: dict[str, dict[str, Any]] = {
    "a": {"r": 4, "target_modules": "all-linear"},
    "b": {"r": 4, "target_modules": ["q_proj", "down_proj", "lm_head"], "use_rslora": True},
    "c": {"r": 8, "target_modules": ["v_proj", "o_proj", "up_proj"], "rank_pattern": {"o_proj": 2}},
}
PROMPTS = [(4, 20, 30, 1, 5), (4, 9, 1, 5), (4, *range(10, 60), 1, 5)]


@pytest.fixture
def folders(tmp_path: Path, tiny: LoadedModel) -> dict[str, Path]:
    base = SharedBase(tiny)
    for seed, (name, config) in enumerate(ADAPTERS.items()):
        write(base, tmp_path / name, seed=seed, **config)
    return {name: tmp_path / name for name in ADAPTERS}


def write(base: SharedBase, folder: Path, *, seed: int, **config: Any) -> None:
    torch.manual_seed(seed)
    model = get_peft_model(base.fork().model, LoraConfig(lora_alpha=16, task_type="CAUSAL_LM", **config))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder, save_embedding_layers=False)


def merged(folder: Path | None, models_dir: Path) -> TorchEngine:
    loaded = load("tiny", models_dir=models_dir)
    model = loaded.model if folder is None else PeftModel.from_pretrained(loaded.model, folder).merge_and_unload()
    return TorchEngine(model, loaded.template)


def engine_of(loaded: LoadedModel, path: str, folders: dict[str, Path]) -> TorchEngine:
    weights = LlamaWeights.of(loaded.model) if path != "modules" else None
    engine = TorchEngine(loaded.model, loaded.template, weights=weights)
    for name, folder in folders.items():
        engine.set_adapter(name, read_adapter(folder, loaded.model))
    return engine


def requests(adapter: str | None, **params: Any) -> list[GenerationRequest]:
    sampling = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True} | params
    return [
        GenerationRequest(request_id=f"{adapter}-{i}", prompt_ids=p, adapter=adapter, params=SamplingParams(**sampling))
        for i, p in enumerate(PROMPTS)
    ]


def same(ours: Sequence[Completion], theirs: Sequence[Completion]) -> None:
    assert [c.token_ids for c in ours] == [c.token_ids for c in theirs]
    for mine, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.tensor(mine.logprobs), torch.tensor(their.logprobs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("path", ["modules", "fused", "apart"])
def test_a_mixed_batch_equals_engines_of_one_merged_adapter(
    folders: dict[str, Path], tiny: LoadedModel, models_dir: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path == "apart":
        monkeypatch.setattr(adapted_weights, "_MAX_SLOTS", 0)
    engine = engine_of(tiny, path, folders)
    names: list[str | None] = [None, *ADAPTERS]
    # One of each in turn, so that no two neighbours speak alike; then one alone, then with only one other.
    mixed = [r for part in zip(*(requests(name) for name in names), strict=True) for r in part]
    said = {r.request_id: c for r, c in zip(mixed, generate(engine, mixed), strict=True)}
    for name in names:
        alone = merged(folders.get(name or ""), models_dir)
        wanted = generate(alone, of_base(requests(name)))
        same([said[r.request_id] for r in requests(name)], wanted)
        same(generate(engine, requests(name)), wanted)
    assert len({c.logprobs for c in said.values()}) == len(said)


def of_base(asked: Sequence[GenerationRequest]) -> list[GenerationRequest]:
    return [replace(request, adapter=None) for request in asked]


@pytest.mark.parametrize("path", ["modules", "fused"])
def test_a_new_version_answers_new_requests_and_the_old_one_ends_its_own(
    folders: dict[str, Path], tiny: LoadedModel, models_dir: Path, path: str
) -> None:
    engine = engine_of(tiny, path, {"job": folders["a"], "other": folders["c"]})
    old = requests("job")
    new = [replace(request, request_id=f"new-{request.request_id}") for request in old]
    said: dict[str, list[int]] = {r.request_id: [] for r in (*old, *new)}
    for request in old:
        engine.add(request)
    for step in range(100):
        if step == 4:
            engine.set_adapter("job", read_adapter(folders["b"], tiny.model))
            for request in new:
                engine.add(request)
        if step == 6:
            engine.drop_adapter("job")  # unloaded while both versions speak
        for event in engine.step():
            said[event.request_id].append(event.token_id)
    assert not engine.has_work
    for asked, folder in ((old, folders["a"]), (new, folders["b"])):
        wanted = generate(merged(folder, models_dir), of_base(asked))
        assert [tuple(said[r.request_id]) for r in asked] == [c.token_ids for c in wanted]


def test_a_conversation_goes_on_with_the_newest_version_alone(
    folders: dict[str, Path], tiny: LoadedModel, models_dir: Path
) -> None:
    engine = engine_of(tiny, "fused", {"job": folders["a"]})
    params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    first = GenerationRequest(request_id="1", prompt_ids=PROMPTS[0], adapter="job", params=params, keep=True)
    context = (*PROMPTS[0], *generate(engine, [first])[0].token_ids, 7, 8)
    engine.set_adapter("job", read_adapter(folders["b"], tiny.model))
    second = GenerationRequest(request_id="2", prompt_ids=context, adapter="job", params=params, continues="1")
    same(generate(engine, [second]), generate(merged(folders["b"], models_dir), of_base([second])))


def test_what_cannot_run_beside_others_is_refused_by_name(tmp_path: Path, tiny: LoadedModel) -> None:
    base = SharedBase(tiny)
    for name, config in {"dora": {"use_dora": True}, "bias": {"bias": "all"}}.items():
        write(base, tmp_path / name, seed=0, r=2, target_modules=["q_proj"], **config)
    with pytest.raises(InvalidRequest, match="use_dora=True"):
        read_adapter(tmp_path / "dora", tiny.model)
    with pytest.raises(InvalidRequest, match="bias='all'"):
        read_adapter(tmp_path / "bias", tiny.model)
    engine = engine_of(tiny, "modules", {})
    with pytest.raises(InvalidRequest, match="no adapter is called 'x'; there are: none"):
        engine.add(requests("x")[0])


def test_forks_share_every_weight(tiny: LoadedModel) -> None:
    base = SharedBase(tiny)
    assert base.weights is not None
    fork = base.fork().model
    assert all(a is b for a, b in zip(fork.parameters(), tiny.model.parameters(), strict=True))
    weights = LlamaWeights.of(fork, base.weights)
    assert weights is not None
    assert weights.layers[0].qkv.weight is base.weights.layers[0].qkv.weight
