"""Runs that share a base against the same runs alone, on the tiny model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from chatgrpo.errors import InvalidRequest
from chatgrpo.inference.shared_engine import MemberEngine
from chatgrpo.rollouts.trajectories import read_trajectories
from chatgrpo.training.cohort import Member, train_together
from chatgrpo.training.config import TrainConfig
from chatgrpo.training.loop import Outcome, train
from tests.toy import TOY
from tests.toy_runs import place

ADAPTER: dict[str, Any] = TOY | {"max_steps": 3, "lora": {"r": 4, "alpha": 8}}
# Different in all that a cohort must keep apart: seed, rank, rate, length, a reference, more than one iteration.
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "wide": {"seed": 1, "lora": {"r": 8, "alpha": 8, "target_modules": ["q_proj", "down_proj", "lm_head"]}},
    "reference": {"seed": 2, "beta": 0.05, "learning_rate": 3e-3, "prompts_per_step": 1},
    "twice": {"seed": 3, "num_iterations": 2, "max_steps": 2, "reuse_activations_gb": 0.0},
}


def member(home: Path, models_dir: Path, run_id: str, **changes: Any) -> Member:
    config = TrainConfig.model_validate(ADAPTER | changes)
    return Member(config=config, place=place(home, models_dir, run_id), report=lambda *_: None)


def figures(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")  # peft, at the export of an adapted head
def test_every_run_is_what_it_is_alone(tmp_path: Path, models_dir: Path) -> None:
    together = [member(tmp_path / "together", models_dir, name, **changes) for name, changes in RUNS.items()]
    outcomes = train_together(together)
    for mine, outcome in zip(together, outcomes, strict=True):
        assert isinstance(outcome, Outcome), outcome
        alone = place(tmp_path / "alone", models_dir, mine.place.run_id)
        wanted = train(mine.config, alone, lambda *_: None)
        assert (outcome.step, outcome.published_step) == (wanted.step, wanted.published_step)
        said, expected = (list(read_trajectories(p.run_dir / "trajectories-0.jsonl")) for p in (mine.place, alone))
        assert [t.episode.token_ids for t in said] == [t.episode.token_ids for t in expected]
        for ours, theirs in zip(figures(mine.place.run_dir), figures(alone.run_dir), strict=True):
            _same(ours, theirs)
        ours, theirs = (load_file(p.run_dir / "export/adapter/adapter_model.safetensors") for p in (mine.place, alone))
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, atol=1e-4, rtol=1e-3)


def _same(ours: Mapping[str, float], theirs: Mapping[str, float]) -> None:
    for name in ("reward", "loss", "kl", "entropy", "grad_norm", "eval_reward", "rows_trained", "weight_version"):
        assert (name in ours) == (name in theirs), name
        if name in ours:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
    assert ours.get("sampler_delta_max", 0.0) < 1e-5


def test_a_run_that_fails_or_stops_leaves_the_others_alone(tmp_path: Path, models_dir: Path) -> None:
    members = [
        member(tmp_path, models_dir, "good", max_steps=2),
        member(tmp_path, models_dir, "bad", max_prompt_length=2),
        member(tmp_path, models_dir, "asked"),
        member(tmp_path, models_dir, "late", max_steps=1),
    ]
    (members[2].place.run_dir / "stop").write_text("preempt")
    good, bad, asked, late = train_together(members, at_once=2)
    assert isinstance(good, Outcome)
    assert (good.step, good.published_step) == (2, 2)
    assert isinstance(bad, InvalidRequest)
    assert "max_prompt_length" in str(bad)
    assert isinstance(asked, Outcome)
    assert (asked.stopped, asked.step) == (True, 1)
    assert isinstance(late, Outcome)
    # What was stopped goes on alone, from the checkpoint that it left in company.
    (members[2].place.run_dir / "stop").unlink()
    outcome = train(members[2].config, members[2].place, lambda *_: None)
    assert (outcome.stopped, outcome.step) == (False, 3)


def test_an_engine_that_breaks_fails_every_run(
    tmp_path: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights_changed = MemberEngine.weights_changed

    def breaking(self: MemberEngine, version: int, *, same: bool = False) -> None:
        weights_changed(self, version, same=same)
        monkeypatch.setattr(self._shared._engine, "_draw", None)

    monkeypatch.setattr(MemberEngine, "weights_changed", breaking)
    outcomes = train_together([member(tmp_path, models_dir, name) for name in ("a", "b")])
    assert all(isinstance(outcome, TypeError | RuntimeError) for outcome in outcomes)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"lora": None}, "lora"),
        ({"model": "smollm2-135m-instruct"}, "model"),
        ({"fast_path": False}, "fast_path"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing"),
        ({"deepspeed": {}}, "deepspeed"),
        ({"max_staleness": 1}, "max_staleness"),
        ({"rollout_workers": 1}, "rollout_workers"),
    ],
)
def test_what_cannot_share_is_refused_by_name(
    tmp_path: Path, models_dir: Path, change: dict[str, Any], field: str
) -> None:
    members = [member(tmp_path, models_dir, "a"), member(tmp_path, models_dir, "b", **change)]
    with pytest.raises(InvalidRequest) as raised:
        train_together(members)
    assert raised.value.field == field
