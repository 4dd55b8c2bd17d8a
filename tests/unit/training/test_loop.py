"""Whole runs on the tiny model, in this process."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from chatgrpo.api.old_train import old_answer
from chatgrpo.errors import InvalidRequest
from chatgrpo.inference.loading import load
from chatgrpo.jobs import checkpoints
from chatgrpo.jobs.divergence import Diverged
from chatgrpo.jobs.prompts_request import PromptsRequest
from chatgrpo.jobs.run_folder import RunFolder
from chatgrpo.rewards.config import LengthReward
from chatgrpo.rollouts.trajectories import read_trajectories
from chatgrpo.training import loop
from chatgrpo.training.config import TrainConfig
from chatgrpo.training.evaluation import Evaluation
from chatgrpo.training.export import export_merged
from chatgrpo.training.loop import Run
from tests.toy import TOY
from tests.toy_runs import interrupt_at_step, place, run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return state


def test_a_run_leaves_metrics_trajectories_a_checkpoint_and_a_model(tmp_path: Path, models_dir: Path) -> None:
    where = place(tmp_path, models_dir)
    outcome, reports = run(TOY, where)
    assert (outcome.step, outcome.total_steps, outcome.stopped, outcome.reason) == (4, 4, False, "")
    assert [r["step"] for r in reports] == [0, 1, 2, 3, 4]
    assert {"reward", "kl", "eval_reward", "eta_s"} - reports[-1].keys() == {"kl"}
    lines = [json.loads(line) for line in (where.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert {line["total_steps"] for line in lines} == {4}
    played = list(read_trajectories(where.run_dir / "trajectories-0.jsonl"))
    assert len(played) == 4 * 2 * 4
    assert all(len(t.episode.turns) == 2 for t in played)
    assert {t.episode.turns[0].weight_version for t in played} == {0, 1, 2, 3}
    assert [e.step for e in checkpoints.entries(where.run_dir / "checkpoints")] == [2]
    exported = weights(where.run_dir / "export" / "model")
    trained = load("RUN", models_dir=models_dir, runs_dir=where.runs_dir).model.state_dict()
    assert all(torch.equal(exported[name], trained[name]) for name in exported)


def test_sampler_and_learner_agree(tmp_path: Path, models_dir: Path) -> None:
    _, reports = run(TOY, place(tmp_path, models_dir))
    deltas = [r["sampler_delta_max"] for r in reports if r.get("rows_trained")]
    assert len(deltas) >= 2
    assert max(deltas) < 1e-5


@pytest.mark.parametrize("lora", [None, {"r": 4, "alpha": 8}])
def test_an_interrupted_run_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, models_dir: Path, lora: dict[str, int] | None
) -> None:
    config = TOY | {"lora": lora, "beta": 0.01 if lora else 0.0}
    straight, cut = place(tmp_path / "a", models_dir), place(tmp_path / "b", models_dir)
    run(config, straight)
    first = Run(TrainConfig.model_validate(config), cut, lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        interrupt_at_step(first, 3)
    outcome, reports = run(config, cut)
    assert [r["step"] for r in reports] == [3, 4]
    assert outcome.step == 4
    for where in (straight, cut):
        export_merged("RUN", runs_dir=where.runs_dir, models_dir=models_dir)
    a, b = (weights(where.run_dir / "export" / "model") for where in (straight, cut))
    assert all(torch.equal(a[name], b[name]) for name in a)
    steps = [json.loads(line)["step"] for line in (cut.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 4]
    assert len(list(read_trajectories(cut.run_dir / "trajectories-0.jsonl"))) == 4 * 2 * 4


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_later(tmp_path: Path, models_dir: Path) -> None:
    where = place(tmp_path, models_dir)
    (where.run_dir / "stop").write_text("preempt")
    outcome, _ = run(TOY | {"save_steps": None}, where)
    assert (outcome.stopped, outcome.step, outcome.reason) == (True, 1, "asked to preempt")
    assert not (where.run_dir / "export").exists()
    (where.run_dir / "stop").unlink()
    outcome, reports = run(TOY | {"save_steps": None}, where)
    assert (outcome.stopped, outcome.step) == (False, 4)
    assert [r["step"] for r in reports] == [2, 3, 4]


def test_an_adapter_and_its_merged_weights(tmp_path: Path, models_dir: Path) -> None:
    where = place(tmp_path, models_dir)
    run(TOY | {"lora": {"r": 4, "alpha": 8}, "max_steps": 2, "num_eval_prompts": 0}, where)
    assert (where.run_dir / "export" / "adapter" / "adapter_config.json").is_file()
    chatted = load("RUN", models_dir=models_dir, runs_dir=where.runs_dir).model.state_dict()
    merged = weights(export_merged("RUN", runs_dir=where.runs_dir, models_dir=models_dir))
    base = weights(models_dir / "tiny")
    assert all(torch.equal(merged[name], chatted[name]) for name in merged)
    assert any(not torch.equal(merged[name], base[name]) for name in merged)


def test_early_stopping_says_why(tmp_path: Path, models_dir: Path) -> None:
    config = TOY | {"learning_rate": 1e-12, "eval_steps": 1, "early_stopping": {"patience": 2, "min_delta": 0.5}}
    outcome, _ = run(config, place(tmp_path, models_dir))
    assert outcome.step == 2
    assert "has not risen" in outcome.reason


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations with fixed results: the second step is the best one."""
    rewards = [0.1, 0.5, 0.9, 0.2, 0.3]

    def evaluate(*_: Any, step: int, **__: Any) -> Evaluation:
        return Evaluation(reward=rewards[step], accuracy=0.0, num_tasks=4)

    monkeypatch.setattr(loop, "evaluate", evaluate)


@pytest.mark.usefixtures("scripted")
def test_the_best_policy_is_published_also_after_an_interruption(tmp_path: Path, models_dir: Path) -> None:
    config = TOY | {"eval_steps": 1, "save_steps": 3, "save_total_limit": 1}
    two_steps = place(tmp_path / "two", models_dir)
    run(TOY | {"max_steps": 2, "save_steps": None}, two_steps)
    straight, cut = place(tmp_path / "a", models_dir), place(tmp_path / "b", models_dir)
    outcome, _ = run(config, straight)
    assert (outcome.step, outcome.published_step) == (4, 2)
    assert [e.step for e in checkpoints.entries(straight.run_dir / "checkpoints")] == [2, 3]
    with pytest.raises(KeyboardInterrupt):
        interrupt_at_step(Run(TrainConfig.model_validate(config), cut, lambda *_: None), 3)
    assert run(config, cut)[0].published_step == 2
    wanted = weights(two_steps.run_dir / "export" / "model")
    for where in (straight, cut):
        exported = weights(where.run_dir / "export" / "model")
        assert all(torch.equal(exported[name], wanted[name]) for name in wanted)


@pytest.mark.usefixtures("scripted")
def test_the_last_policy_is_published_on_request(tmp_path: Path, models_dir: Path) -> None:
    config = TOY | {"eval_steps": 1, "save_steps": None, "load_best_model_at_end": False}
    where = place(tmp_path, models_dir)
    assert run(config, where)[0].published_step == 4
    assert checkpoints.entries(where.run_dir / "checkpoints") == []


@pytest.mark.usefixtures("scripted")
def test_a_run_that_diverges_publishes_the_best_it_had_or_fails(tmp_path: Path, models_dir: Path) -> None:
    # No policy has so much entropy; beta makes every step train, so that every step knows its own.
    broken = TOY | {"beta": 0.01, "divergence": {"min_entropy": 100.0}, "save_steps": None}
    outcome, _ = run(broken | {"eval_steps": 1}, place(tmp_path / "a", models_dir))
    assert (outcome.step, outcome.published_step) == (3, 2)
    assert outcome.reason.startswith("diverged: entropy ")
    assert outcome.reason.endswith("fell below 100, the last of 3 such steps in a row at step 3")
    nothing_kept = place(tmp_path / "b", models_dir)
    with pytest.raises(Diverged, match="set eval_steps to keep the best one"):
        run(broken, nothing_kept)
    assert not (nothing_kept.run_dir / "export").exists()


def test_out_of_time_ends_with_an_evaluation_and_a_model(tmp_path: Path, models_dir: Path) -> None:
    where = place(tmp_path, models_dir)
    outcome, reports = run(TOY | {"max_runtime_hours": 1e-9}, where)
    assert outcome.step == 1
    assert "max_runtime_hours" in outcome.reason
    assert "eval_reward" in reports[-1]
    assert (where.run_dir / "export" / "model" / "config.json").is_file()


def test_dynamic_sampling_replaces_groups_that_teach_nothing(tmp_path: Path, models_dir: Path) -> None:
    config = TOY | {"dynamic_sampling": True, "num_generations": 2, "max_resample_rounds": 2, "max_steps": 3}
    where = place(tmp_path, models_dir)
    _, reports = run(config, where)
    assert all(r["zero_variance_groups"] == 0.0 for r in reports if "zero_variance_groups" in r)
    assert max(r["rollout/num_groups"] for r in reports[1:]) > 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"environment": {"type": "plugin", "name": "toy_tol"}}, "did you mean toy_tool"),
        ({"environment": {"type": "dataset", "paths": ["/nowhere.jsonl"]}}, "nowhere"),
        ({"max_prompt_length": 2}, "max_prompt_length"),
        ({"lora": {"target_modules": ["nothing"]}}, "nothing"),
    ],
)
def test_bad_input_fails_the_run_by_name(tmp_path: Path, models_dir: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        run(TOY | change, place(tmp_path, models_dir))


def test_a_run_on_bare_prompts_plays_each_in_every_iteration(tmp_path: Path, models_dir: Path) -> None:
    short = LengthReward(target_tokens=2, max_tokens=9)
    request = PromptsRequest(prompts=["say a", "say b"], num_iterations=2, parallel_batch_size=8, rewards=[short])
    where = place(tmp_path, models_dir)
    run(request.to_train_config(model="tiny").model_dump(mode="json") | {"max_completion_length": 8}, where)
    view = {"job_id": "RUN", "status": "succeeded", "progress": {"current_step": 2}, "metrics": {}, "error": None}
    steps = RunFolder(where.run_dir).read_metrics()
    told = old_answer(view, steps, cpu_hours=0.0, gpu_hours=0.0)
    played = list(read_trajectories(where.run_dir / "trajectories-0.jsonl"))
    assert (told.total_trajectories, len(played)) == (2 * 2 * 8, 2 * 2 * 8)
    rewards = [t.episode.reward for t in played if t.episode.reward is not None]
    assert told.average_reward == pytest.approx(sum(rewards) / len(rewards))
    asked = Counter(t.task.messages[-1].content for t in played)
    assert asked == {"say a": 16, "say b": 16}
