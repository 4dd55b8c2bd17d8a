"""Ray Train and DeepSpeed against the plain loop in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import train_grpo
from actors.cohort_trainer import Trial, train_cohort
from chatgrpo.config import PlatformConfig
from chatgrpo.errors import InvalidRequest
from chatgrpo.jobs.run_folder import RunFolder
from chatgrpo.jobs.sweeps.config import SweepConfig
from chatgrpo.jobs.sweeps.job import table_path
from chatgrpo.jobs.sweeps.table import Table, TrialState
from chatgrpo.training.config import TrainConfig
from tests.toy import TOY

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

CONFIG: dict[str, Any] = TOY | {
    "prompts_per_step": 4,
    "num_eval_prompts": 6,
    "resources": {"threads_per_worker": 1},
}


@pytest.fixture(scope="module")
def alone(training_platform: PlatformConfig) -> list[dict[str, float]]:
    """The metrics of the run in one process, without Ray."""
    from chatgrpo.training.loop import Place, train

    run_dir = training_platform.runs_dir / "alone"
    run_dir.mkdir(parents=True)
    place = Place(run_id="alone", home=training_platform.home, run_dir=run_dir)
    train(TrainConfig.model_validate(CONFIG), place, lambda *_: None)
    return metrics(run_dir)


def metrics(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", [2, 3])
def test_two_deepspeed_workers_walk_the_path_of_one_process(
    ray_cluster: str, training_platform: PlatformConfig, alone: list[dict[str, float]], stage: int
) -> None:
    config = CONFIG | {"num_workers": 2, "deepspeed": {"zero_optimization": {"stage": stage}}}
    run_id = f"zero{stage}"
    result = train_grpo.run(TrainConfig.model_validate(config), run_id=run_id, platform=training_platform)
    assert result["status"] == "succeeded"
    together = metrics(training_platform.runs_dir / run_id)
    assert [m["step"] for m in together] == [0, 1, 2, 3, 4]
    assert any(abs(m.get("loss", 0)) > 1e-3 for m in alone)
    for one, two in zip(alone, together, strict=True):
        for name in ("loss", "reward", "grad_norm", "kl", "eval_reward"):
            assert two.get(name) == pytest.approx(one.get(name), abs=1e-4), (one["step"], name)
    # The step that was taken from a checkpoint is the step that was taken without a break.
    (training_platform.runs_dir / run_id / "result.json").unlink()
    again = train_grpo.run(TrainConfig.model_validate(config), run_id=run_id, platform=training_platform)
    resumed = metrics(training_platform.runs_dir / run_id)
    assert again["step"] == 4
    assert [m["step"] for m in resumed] == [0, 1, 2, 3, 4]
    assert resumed[-1]["loss"] == pytest.approx(alone[-1]["loss"], abs=1e-4)


def test_a_users_mistake_in_a_worker_is_one_line_in_the_result(
    ray_cluster: str, training_platform: PlatformConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "data.jsonl"
    broken.write_text('{"prompt": "2 + 2", "answer": "4"}\n{"prompt": \n')
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(CONFIG | {"environment": {"type": "dataset", "paths": [str(broken)]}}))
    monkeypatch.setenv("CHATGRPO_HOME", str(training_platform.home))
    assert train_grpo.main(["--config", str(config), "--run-id", "broken"]) == 1
    result = json.loads((training_platform.runs_dir / "broken" / "result.json").read_text())
    assert (result["status"], result["cause"]) == ("failed", "user")
    assert f"{broken}:2" in result["error"]


def test_overrides_are_checked_by_name(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model: tiny\n")
    assert train_grpo.read_config(config, ["lora.r=4", "max_steps=3"]).max_steps == 3
    with pytest.raises(InvalidRequest, match="num_generations"):
        train_grpo.read_config(config, ["num_generation=4"])
    with pytest.raises(InvalidRequest, match=r"num_generations: .*greater than or equal to 2.*1"):
        train_grpo.read_config(config, ["num_generations=1"])


def test_runs_and_trials_share_a_base(ray_cluster: str, training_platform: PlatformConfig, tmp_path: Path) -> None:
    train = CONFIG | {
        "lora": {"r": 4},
        "max_steps": 2,
        "num_eval_prompts": 0,
        "save_steps": None,
        "prompts_per_step": 2,
    }
    for name, change in {"a": {}, "b": {"seed": 1}, "bad": {"max_prompt_length": 2}}.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(train | change))
    trials = [
        Trial(run_id=f"both-{name}", config=train_grpo.read_config(tmp_path / f"{name}.yaml", []))
        for name in ("a", "b", "bad")
    ]
    results = train_cohort(trials, platform=training_platform, explain=train_grpo.explain)
    assert [results[t.run_id]["status"] for t in trials] == ["succeeded", "succeeded", "failed"]
    assert results["both-bad"]["cause"] == "user"
    for name in ("a", "b"):
        assert (training_platform.runs_dir / f"both-{name}" / "export" / "adapter" / "adapter_config.json").is_file()

    sweep = SweepConfig.model_validate(
        {
            "train": train,
            "space": {"learning_rate": {"type": "loguniform", "low": 1e-5, "high": 1e-2}},
            "metric": "reward",
            "num_samples": 3,
            "max_concurrent": 2,
            "share_base": True,
            "search": "random",
            "scheduler": {"type": "none"},
        }
    )
    folder = RunFolder.of(training_platform.runs_dir, "shared")
    folder.prepare({})
    found = train_grpo._run_sweep(sweep, "shared", training_platform, 1)
    assert (found["status"], found["step"], found["total_steps"]) == ("succeeded", 3, 3)
    table = Table.load(table_path(folder))
    assert table is not None
    assert [t.state for t in table.trials.values()] == [TrialState.COMPLETED] * 3
    assert len({t.params["learning_rate"] for t in table.trials.values()}) == 3
    assert found["best"]["value"] == max(t.best for t in table.trials.values() if t.best is not None)
    best = train_grpo.read_config(folder.path / "best.yaml", [])
    assert best.learning_rate == found["best"]["params"]["learning_rate"]
