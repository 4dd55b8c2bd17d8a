from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatgrpo.jobs import checkpoints
from chatgrpo.jobs.run_folder import RunFolder
from chatgrpo.jobs.sweeps import inheritance
from chatgrpo.jobs.sweeps.config import Choice, Dimension, LogUniform, Pbt, RandInt, Uniform
from chatgrpo.jobs.sweeps.population import Member, decide, explore, is_due
from chatgrpo.jobs.sweeps.space import trial_config
from chatgrpo.jobs.sweeps.table import Segment, Table
from chatgrpo.training.loop import Place, train
from tests.toy import TOY

SPACE: dict[str, Dimension] = {
    "learning_rate": LogUniform(low=1e-5, high=1e-3),
    "temperature": Uniform(low=0.7, high=1.3),
    "top_k": RandInt(low=1, high=50),
    "epsilon": Choice(values=[0.1, 0.2, 0.3]),
}
PARAMS = {"learning_rate": 1e-4, "temperature": 1.0, "top_k": 3, "epsilon": 0.2}


def members(**scores: float) -> list[Member]:
    return [Member(trial_id=name, score=score) for name, score in scores.items()]


@pytest.mark.parametrize(
    ("scores", "quantile", "takers"),
    [
        ({"a": 0.9, "b": 0.5, "c": 0.4, "d": 0.1}, 0.25, {"d": {"a"}}),
        ({"a": 0.9, "b": 0.5, "c": 0.4, "d": 0.1}, 0.5, {"c": {"a", "b"}, "d": {"a", "b"}}),
        ({"a": 0.9, "b": 0.5, "c": 0.4}, 0.5, {"c": {"a"}}),
        ({"a": 0.9, "b": 0.5}, 0.25, {"b": {"a"}}),
        ({"a": 0.5, "b": 0.5}, 0.25, {}),
        ({"a": 0.5}, 0.5, {}),
    ],
)
def test_the_worst_take_over_from_the_best(
    scores: dict[str, float], quantile: float, takers: dict[str, set[str]]
) -> None:
    pbt = Pbt(quantile=quantile)
    donors = {
        name: {decide(name, members(**scores), pbt, random.Random(seed)) for seed in range(20)} for name in scores
    }
    assert {name: found for name, found in donors.items() if found != {None}} == takers


def test_a_trial_is_compared_when_it_passes_a_multiple_of_the_interval() -> None:
    steps = list(range(1, 17))
    due = [s for s in steps if is_due(s, last_step=s - 1, since_step=0, interval_steps=5)]
    assert due == [5, 10, 15]
    # It came to 16 by a takeover: the comparison at 15 was the other's.
    assert not is_due(17, last_step=10, since_step=16, interval_steps=5)
    assert is_due(6, last_step=3, since_step=0, interval_steps=5)


@given(seed=st.integers(0, 10**6), resample=st.sampled_from([0.0, 0.25, 1.0]))
def test_explored_values_stay_within_their_dimensions(seed: int, resample: float) -> None:
    params: dict[str, Any] = dict(PARAMS)
    rng = random.Random(seed)
    for _ in range(30):
        params = explore(params, SPACE, Pbt(resample_probability=resample), rng)
    assert 1e-5 <= params["learning_rate"] <= 1e-3
    assert 0.7 <= params["temperature"] <= 1.3
    assert isinstance(params["top_k"], int)
    assert 1 <= params["top_k"] <= 50
    assert params["epsilon"] in (0.1, 0.2, 0.3)


def test_without_drawing_anew_values_move_by_one_factor() -> None:
    moves = [explore(PARAMS, SPACE, Pbt(resample_probability=0), random.Random(seed)) for seed in range(50)]
    assert {m["learning_rate"] for m in moves} == {1e-4 * 0.8, 1e-4 * 1.2}
    assert {m["temperature"] for m in moves} == {0.8, 1.2}
    assert {m["top_k"] for m in moves} == {2, 4}
    assert {m["epsilon"] for m in moves} == {0.1, 0.3}
    drawn = [explore(PARAMS, SPACE, Pbt(resample_probability=1), random.Random(seed)) for seed in range(200)]
    # Each order of magnitude equally likely: the middle of the range is its geometric mean.
    assert 70 < sum(d["learning_rate"] < 1e-4 for d in drawn) < 130


def test_the_table_tells_how_a_policy_was_trained(tmp_path: Path) -> None:
    table = Table("reward", "max")
    for name, rate, value in (("a", 1.0, 0.9), ("b", 2.0, 0.1), ("c", 3.0, 0.2)):
        table.start(name, f"S-{name}", {"rate": rate})
        table.report(name, {"step": 10, "reward": value})
    table.take_over("b", "a", step=8, params={"rate": 0.8})
    table.report("b", {"step": 20, "reward": 0.95})
    table.take_over("c", "b", step=20, params={"rate": 0.64})
    table.save(tmp_path / "trials.json")
    rows = (Table.load(tmp_path / "trials.json") or table).trials
    assert rows["a"].lineage == ()
    assert rows["c"].lineage == (
        Segment(trial_id="a", from_step=0, params={"rate": 1.0}),
        Segment(trial_id="b", from_step=8, params={"rate": 0.8}),
        Segment(trial_id="c", from_step=20, params={"rate": 0.64}),
    )
    assert (rows["c"].params, rows["c"].step, rows["c"].best, rows["c"].takeovers) == ({"rate": 0.64}, 20, 0.95, 1)


def save(folder: RunFolder, step: int, content: str) -> None:
    def write(path: Path) -> None:
        (path / "w").write_text(content)

    checkpoints.save_atomic(checkpoints.folder(folder.checkpoints, step), write)


def folder_with(tmp_path: Path, name: str, *steps: int) -> RunFolder:
    folder = RunFolder(tmp_path / name)
    for step in steps:
        save(folder, step, f"{name}{step}")
    folder.path.mkdir(exist_ok=True)
    folder.metrics.write_text("".join(f'{{"step": {s}, "of": "{name}"}}\n' for s in range(10)))
    return folder


def held_by(folder: RunFolder) -> dict[str, str]:
    return {entry.path.name: (entry.path / "w").read_text() for entry in checkpoints.entries(folder.checkpoints)}


def test_a_takeover_counts_when_the_table_says_so_and_can_be_repeated(tmp_path: Path) -> None:
    donor, heir = folder_with(tmp_path, "a", 2, 4), folder_with(tmp_path, "b", 2, 4, 6)
    assert inheritance.bequeath(donor, heir, 1) == 4
    assert inheritance.is_pending(heir)
    assert len(held_by(heir)) == 3
    # The scheduler died before it wrote the takeover down.
    inheritance.adopt(heir, 0)
    assert len(held_by(heir)) == 3
    assert not inheritance.is_pending(heir)
    inheritance.bequeath(donor, heir, 1)
    checkpoints.retain(donor.checkpoints, 1, best=0)
    save(donor, 4, "other")
    for _ in range(2):
        inheritance.adopt(heir, 1)
        assert held_by(heir) == {"step-00000004": "a4"}
        assert checkpoints.latest_valid(heir.checkpoints) == heir.checkpoints / "step-00000004"
        assert [line["of"] for line in heir.read_metrics()] == ["a"] * 5


def test_a_damaged_checkpoint_is_not_handed_on(tmp_path: Path) -> None:
    donor, heir = folder_with(tmp_path, "a", 2, 4), folder_with(tmp_path, "b")
    (donor.checkpoints / "step-00000004" / "w").write_text("rotten")
    assert inheritance.bequeath(donor, heir, 1) == 2
    assert inheritance.bequeath(folder_with(tmp_path, "c"), heir, 2) is None


def test_a_run_folder_belongs_to_one_process_until_that_is_dead(tmp_path: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from chatgrpo.jobs.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).held(): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder, holder.stdout:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TimeoutError, match="another process still writes"), RunFolder(tmp_path).held(timeout_s=0):
            pass
        holder.kill()
    with RunFolder(tmp_path).held(timeout_s=10):
        pass


def test_an_heir_goes_on_as_the_donor_would_have_with_its_own_values(tmp_path: Path, models_dir: Path) -> None:
    (tmp_path / "models").symlink_to(models_dir)
    base = TOY | {"num_generations": 8, "num_eval_prompts": 0, "load_best_model_at_end": False}

    def run(name: str, **params: float) -> RunFolder:
        folder = RunFolder.of(tmp_path / "runs", name)
        folder.path.mkdir(parents=True, exist_ok=True)
        place = Place(run_id=name, home=tmp_path, run_dir=folder.path)
        train(trial_config(base, params), place, lambda *_: None)
        return folder

    def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        found: dict[str, torch.Tensor] = load_file(folder.path / "export" / "model" / "model.safetensors")
        return found

    donor, heir = run("donor"), run("heir", learning_rate=1e-6)
    inheritance.bequeath(donor, heir, 1)
    inheritance.adopt(heir, 1)
    run("heir")
    mine, theirs = weights(heir), weights(donor)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    inheritance.bequeath(donor, heir, 2)
    inheritance.adopt(heir, 2)
    run("heir", learning_rate=5e-4)
    assert [line["learning_rate"] for line in heir.read_metrics() if line["step"]] == [1e-3, 1e-3, 5e-4, 5e-4]
    mine = weights(heir)
    assert not all(torch.equal(mine[name], theirs[name]) for name in theirs)
