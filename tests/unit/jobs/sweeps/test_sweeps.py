from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgrpo.config import load_yaml
from chatgrpo.errors import InvalidRequest
from chatgrpo.jobs.amounts import Amount, Request
from chatgrpo.jobs.job import Job
from chatgrpo.jobs.seed_request import validate
from chatgrpo.jobs.sweeps.config import SweepConfig
from chatgrpo.jobs.sweeps.draw import draw
from chatgrpo.jobs.sweeps.files import load_sweep
from chatgrpo.jobs.sweeps.job import best_config, detail, job_config, sweep_of
from chatgrpo.jobs.sweeps.space import MUTABLE, check_space, trial_config
from chatgrpo.jobs.sweeps.table import Table, TrialState
from chatgrpo.training.config import TrainConfig

ROOT = Path(__file__).parents[4]
RATES = {"type": "loguniform", "low": 1e-6, "high": 1e-2}
POPULATION: dict[str, Any] = {
    "scheduler": {"type": "pbt"},
    "num_samples": 4,
    "max_concurrent": 4,
    "train": {"save_steps": 5},
}


def sweep(space: dict[str, Any] | None = None, **fields: Any) -> SweepConfig:
    train = {"model": "tiny", "max_steps": 8, "eval_steps": 2} | fields.pop("train", {})
    return validate(SweepConfig, {"train": train, "space": space or {"learning_rate": RATES}, **fields})


@pytest.mark.parametrize("path", sorted((ROOT / "configs/tune").glob("*.yaml")), ids=lambda p: p.name)
def test_the_recipes_are_valid(path: Path) -> None:
    check_space(validate(SweepConfig, load_sweep(path)))


def test_a_file_may_name_its_training_file(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("model: tiny\nmax_steps: 8\n")
    (tmp_path / "sweep.yaml").write_text("train: train.yaml\nspace: {learning_rate: {type: choice, values: [1, 2]}}\n")
    data = load_sweep(tmp_path / "sweep.yaml", ["train.seed=3", "num_samples=2"])
    assert data["train"] == {"model": "tiny", "max_steps": 8, "seed": 3}
    with pytest.raises(InvalidRequest, match="num_sample"):
        load_sweep(tmp_path / "sweep.yaml", ["num_sample=2"])


@pytest.mark.parametrize(
    ("space", "field", "says"),
    [
        ({"learning_rte": RATES}, "space.learning_rte", "did you mean learning_rate"),
        ({"epsilon": {"type": "uniform", "low": 0.1, "high": 1.5}}, "space.epsilon", "1.5 is refused.*less than 1"),
        ({"loss_type": {"type": "choice", "values": ["dapo", "ppo"]}}, "space.loss_type", "'ppo' is refused"),
        ({"lora.r": {"type": "randint", "low": 0, "high": 8}}, "space.lora.r", "0 is refused.*greater than or equal"),
        ({"num_workers": {"type": "choice", "values": [1, 2]}}, "space.num_workers", "set it under `train`"),
    ],
)
def test_a_space_with_impossible_values_is_refused_by_dimension(space: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        check_space(sweep(space))
    assert refused.value.field == field


@pytest.mark.parametrize("name", ["num_generations", "weight_decay", "lora.r", "prompts_per_step"])
def test_a_population_varies_only_what_may_change_while_a_policy_trains(name: str) -> None:
    asked = sweep({name: {"type": "choice", "values": [2, 4]}, "learning_rate": RATES}, **POPULATION)
    with pytest.raises(InvalidRequest, match="this one cannot; use beta") as refused:
        check_space(asked)
    assert refused.value.field == f"space.{name}"
    check_space(sweep({"temperature": {"type": "uniform", "low": 0.5, "high": 1.5}}, **POPULATION))


def test_all_that_a_population_may_vary_are_fields() -> None:
    assert set(TrainConfig.model_fields) >= MUTABLE


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"space": {"learning_rate": {"type": "uniform", "low": 2, "high": 1}}}, "low: 2.0 must be below high"),
        ({"train": {"eval_steps": None}}, "train.eval_steps: asha compares eval_reward"),
        ({"train": {"num_eval_prompts": 0}}, "needs train.num_eval_prompts"),
        ({"train": {"max_steps": None}}, "scheduler.max_steps: give it"),
        ({"scheduler": {"type": "hyperband"}}, "'asha', 'pbt', 'none'"),
        (POPULATION | {"max_concurrent": 2}, "the 4 trials of pbt train at once.*write 4"),
        (POPULATION | {"num_samples": 1}, "at least 2"),
        (POPULATION | {"search": "optuna"}, "search: pbt draws its trials at once"),
        (POPULATION | {"train": {"save_steps": 3}}, "train.save_steps: 3 must divide scheduler.interval_steps"),
        (POPULATION | {"train": {"save_steps": 5, "eval_steps": None}}, "train.eval_steps: pbt compares"),
        (POPULATION | {"scheduler": {"type": "pbt", "factors": [1.1, 1.2]}}, "one below and one above 1"),
        (POPULATION | {"scheduler": {"type": "pbt", "quantile": 0.6}}, "less than or equal to 0.5"),
        ({"num_samples": 0}, "greater than or equal to 1"),
    ],
)
def test_a_sweep_that_cannot_be_judged_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        sweep(**fields)


@given(st.floats(min_value=1e-9, max_value=1.0, allow_nan=False), st.integers(1, 64))
def test_a_point_becomes_a_configuration_without_loss(rate: float, rank: int) -> None:
    config = trial_config({"model": "tiny"}, {"learning_rate": rate, "lora.r": rank})
    assert config.lora is not None
    assert (config.learning_rate, config.lora.r) == (rate, rank)


def test_the_best_configuration_is_one_that_train_takes() -> None:
    base = load_yaml(ROOT / "configs/tune/tiny.yaml")["train"]
    best = best_config(base, {"learning_rate": 3e-4})
    assert TrainConfig.model_validate(best) == trial_config(base, {"learning_rate": 3e-4})
    assert "temperature" not in best


def test_a_sweep_asks_for_room_for_all_trials_that_run_at_once() -> None:
    train = TrainConfig(num_workers=2, max_steps=4, eval_steps=2).model_dump(mode="json")
    asked = job_config(sweep(train={"num_workers": 2}, max_concurrent=3, priority=7), train)
    request = Request.of_config(asked)
    assert (request.least, request.most, request.per_worker) == (6, 6, Amount.of(cpus=1))
    assert asked["priority"] == 7
    retried = sweep_of(asked | {"micro_batch_tokens": 2048})
    assert (retried.train.micro_batch_tokens, retried.train.num_workers) == (2048, 2)


def test_the_table_ranks_survives_a_restart_and_is_shown(tmp_path: Path) -> None:
    table = Table("eval_reward", "max")
    for name, rate in (("a", 1e-5), ("b", 1e-3), ("c", 1e-2)):
        table.start(name, f"S-{name}", {"learning_rate": rate})
    for name, step, value in (("a", 2, 0.1), ("b", 2, 0.3), ("b", 4, 0.9), ("b", 6, 0.8), ("c", 2, math.nan)):
        table.report(name, {"step": step, "eval_reward": value})
    table.end("a", TrialState.STOPPED)
    table.end("c", TrialState.FAILED, "out of luck")
    table.save(tmp_path / "trials.json")
    table = Table.load(tmp_path / "trials.json") or table
    assert [trial.trial_id for trial in table.ranked()] == ["b", "a", "c"]
    assert table.num_ended == 2
    table.start("b", "S-b", {"learning_rate": 1e-3})
    best = table.best()
    assert best is not None
    assert (best.trial_id, best.best, best.last, best.step) == ("b", 0.9, 0.8, 6)
    config = job_config(sweep(), TrainConfig(model="tiny").model_dump(mode="json"))
    shown = detail(Job(id="S", owner="ann", config=config, submitted_at=0.0), table)
    assert [row["state"] for row in shown["trials"]] == ["running", "stopped", "failed"]
    assert shown["best"]["config"]["learning_rate"] == 1e-3


def test_less_may_be_better() -> None:
    table = Table("loss", "min")
    for name, value in (("a", 0.5), ("b", 0.2)):
        table.start(name, name, {})
        table.report(name, {"loss": value})
    assert [trial.trial_id for trial in table.ranked()] == ["b", "a"]


SHARED: dict[str, Any] = {"share_base": True, "search": "random", "scheduler": {"type": "none"}, "metric": "reward"}


def test_trials_that_share_a_base_need_the_room_of_one_run() -> None:
    shared = sweep(**SHARED, train={"lora": {"r": 4}}, max_concurrent=4)
    assert job_config(shared, shared.train.model_dump(mode="json"))["num_workers"] == 1
    assert sweep_of(job_config(shared, shared.train.model_dump(mode="json"))) == shared


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train": {}}, "train.lora: .*give lora"),
        ({"train": {"lora": {"r": 4}, "fast_path": False}}, "train.fast_path: "),
        ({"search": "optuna"}, "search: trials that share a base are drawn at once; write random"),
        ({"scheduler": {"type": "asha"}}, "scheduler: trials that share a base run to their end"),
    ],
)
def test_what_cannot_share_a_base_is_refused_by_name(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        sweep(**SHARED | {"train": {"lora": {"r": 4}}} | change)


def test_a_dimension_that_parts_the_base_is_refused() -> None:
    models = {"type": "choice", "values": ["tiny", "smollm2-135m-instruct"]}
    with pytest.raises(InvalidRequest, match="two bases"):
        check_space(sweep({"model": models}, **SHARED, train={"lora": {"r": 4}}))


def test_points_are_drawn_within_their_bounds_and_again_the_same() -> None:
    space = {
        "learning_rate": RATES,
        "temperature": {"type": "uniform", "low": 0.5, "high": 1.0},
        "lora.r": {"type": "randint", "low": 2, "high": 3},
        "loss_type": {"type": "choice", "values": ["grpo", "dapo"]},
    }
    points = draw(sweep(space, train={"lora": {"r": 4}}).space, num_samples=200, seed=5)
    assert points == draw(sweep(space, train={"lora": {"r": 4}}).space, num_samples=200, seed=5)
    assert {p["lora.r"] for p in points} == {2, 3}
    assert {p["loss_type"] for p in points} == {"grpo", "dapo"}
    assert all(0.5 <= p["temperature"] <= 1 and 1e-6 <= p["learning_rate"] <= 1e-2 for p in points)
    # Each order of magnitude equally likely: about a quarter of four.
    assert 30 < sum(p["learning_rate"] < 1e-5 for p in points) < 70
