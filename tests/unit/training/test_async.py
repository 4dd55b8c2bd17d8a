"""Whole runs whose rollouts are played beside the learner, by threads of this process."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from chatgrpo.errors import InvalidRequest
from chatgrpo.inference.engine import GenerationRequest, SamplingParams
from chatgrpo.rollouts.trajectories import read_groups, read_trajectories
from chatgrpo.rollouts.worker import Weights
from chatgrpo.training.config import TrainConfig
from chatgrpo.training.loop import Run
from chatgrpo.training.rollout_sampler import build_sampler, weights_of
from tests.toy import TOY
from tests.toy_runs import interrupt_at_step, place, run

ASYNC: dict[str, Any] = TOY | {"max_staleness": 1, "max_steps": 8, "save_steps": 3}


def test_groups_are_played_ahead_within_the_bound_and_every_one_is_trained_on_once(
    tmp_path: Path, models_dir: Path
) -> None:
    where = place(tmp_path, models_dir)
    outcome, reports = run(ASYNC | {"rollout_workers": 2}, where)
    assert outcome.step == 8
    played = list(read_trajectories(where.run_dir / "trajectories-0.jsonl"))
    assert len(played) == len({(t.group_id, t.generation) for t in played}) == 8 * 2 * 4
    assert sorted({int(t.group_id.split("-")[0]) for t in played}) == list(range(16))
    ages = Counter(
        t.step - 1 - version for t in played for turn in t.episode.turns for version, n in turn.versions() if n
    )
    assert set(ages) == {0, 1}
    assert max(r["staleness_max"] for r in reports if "staleness_max" in r) == 1
    assert {t.worker for t in played} <= {"r0w0.1", "r0w1.1"}
    # Off-policy tokens are weighted by what the learner makes of them now.
    assert all("sampler_weight_mean" in r for r in reports if r.get("rows_trained"))


def test_with_staleness_0_a_fleet_plays_with_the_newest_weights_only(tmp_path: Path, models_dir: Path) -> None:
    where = place(tmp_path, models_dir)
    _, reports = run(TOY | {"rollout_workers": 1, "lora": {"r": 4, "alpha": 8}}, where)
    steps = [r for r in reports if "staleness_max" in r]
    assert len(steps) == 4
    assert {r["staleness_max"] for r in steps} == {0.0}
    # The adapters that were sent are the ones that the learner has.
    deltas = [r["sampler_delta_max"] for r in steps if "sampler_delta_max" in r]
    assert deltas
    assert max(deltas) < 1e-5


def test_an_interrupted_run_loses_and_doubles_no_task(tmp_path: Path, models_dir: Path) -> None:
    where = place(tmp_path, models_dir)
    cut = Run(TrainConfig.model_validate(ASYNC), where, lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        interrupt_at_step(cut, 5)
    cut.close(succeeded=False)
    saved = json.loads(next((where.run_dir / "checkpoints").glob("*3/state.json")).read_text())
    assert saved["cursors"][0]["orders"]
    outcome, reports = run(ASYNC, where)
    assert (outcome.step, [r["step"] for r in reports]) == (8, [4, 5, 6, 7, 8])
    ids = [g.group_id for step in range(1, 9) for g in read_groups(where.run_dir / "trajectories-0.jsonl", step=step)]
    assert sorted(int(i.split("-")[0]) for i in ids) == list(range(16))


def test_a_generation_goes_on_over_new_weights_and_knows_who_sampled_what(models_dir: Path, tmp_path: Path) -> None:
    config = TrainConfig.model_validate(ASYNC)
    sampler, other = (build_sampler(config, models_dir=models_dir, runs_dir=tmp_path) for _ in range(2))
    request = GenerationRequest(
        request_id="a", prompt_ids=(9, 10, 11), params=SamplingParams(max_tokens=12, seed=1, ignore_eos=True)
    )
    old = _policy_weights(other, 1)
    new = Weights(version=1, tensors={name: value * 1.5 for name, value in old.tensors.items()})
    for each in (sampler, other):
        each.engine.add(request)
    first = [sampler.engine.step()[0] for _ in range(6)]
    undisturbed = [other.engine.step()[0] for _ in range(12)]
    sampler.load(new)
    assert sampler.engine.weight_version == 1
    rest = [sampler.engine.step()[0] for _ in range(6)]
    assert first == undisturbed[:6]
    assert not sampler.engine.has_work
    assert rest[0].logprob != undisturbed[6].logprob
    # Log-probs are those of the new weights over the cache of the old ones: exactly what it was sampled with.
    assert all(event.logprob <= 0 for event in rest)


def _policy_weights(sampler: Any, version: int) -> Weights:
    return weights_of(_Trainable(sampler.engine._model), version)  # type: ignore[arg-type]


class _Trainable:
    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model

    def trainable(self) -> Any:
        return ((f"model.{name}", p) for name, p in self._model.named_parameters())


def test_a_users_mistake_in_a_worker_ends_the_run_by_name(tmp_path: Path, models_dir: Path) -> None:
    with pytest.raises(InvalidRequest, match="max_prompt_length"):
        run(ASYNC | {"max_prompt_length": 2, "num_eval_prompts": 0}, place(tmp_path, models_dir))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_staleness": 1, "rollout_workers": 0}, "rollout_workers: 0 leaves nobody to play ahead"),
        ({"max_staleness": 1, "reuse_activations_gb": 1.0}, "reuse_activations_gb: 1.0 is for rollouts of the learner"),
        ({"rollout_restarts": 1}, "rollout_restarts: there are no rollout workers"),
    ],
)
def test_settings_that_contradict_are_refused_by_name(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        TrainConfig.model_validate(TOY | change)


def test_one_setting_makes_a_run_asynchronous() -> None:
    def choice(**change: Any) -> tuple[int, str]:
        config = TrainConfig.model_validate(TOY | change)
        return config.num_rollout_workers, config.correction

    assert choice() == (0, "none")
    assert choice(max_staleness=2) == (1, "truncate")
    assert choice(max_staleness=2, sampler_correction="none") == (1, "none")
    assert choice(rollout_workers=3) == (3, "none")
