"""--set key=value."""

from __future__ import annotations

from typing import Any

import pytest

from chatgrpo.errors import InvalidRequest
from chatgrpo.jobs.seed_request import SeedTrainRequest
from chatgrpo.overrides import apply_overrides
from chatgrpo.training.config import TrainConfig

DATA = {"seed": 1, "rewards": [{"type": "exact"}, {"type": "numeric", "weight": 2}], "lora": None}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=7", {"seed": 7}),
        ("learning_rate=1e-5", {"learning_rate": 1e-5}),
        ("dynamic_sampling=true", {"dynamic_sampling": True}),
        ("max_runtime_hours=", {"max_runtime_hours": None}),
        ("stop=[a, b]", {"stop": ["a", "b"]}),
        ("experiment_name=a=b", {"experiment_name": "a=b"}),
        ("lora.r=8", {"lora": {"r": 8}}),
        ("rewards.1.weight=0.5", {"rewards": [{"type": "exact"}, {"type": "numeric", "weight": 0.5}]}),
        ("environment.params.min_terms=2", {"environment": {"params": {"min_terms": 2}}}),
        ("deepspeed.zero.stage=2", {"deepspeed": {"zero": {"stage": 2}}}),
        ("resources.cpus_per_worker=2", {"resources": {"cpus_per_worker": 2}}),
    ],
)
def test_one_override(override: str, expected: dict[str, Any]) -> None:
    assert apply_overrides(DATA, [override], TrainConfig) == DATA | expected


def test_later_overrides_win_and_the_original_stays() -> None:
    assert apply_overrides(DATA, ["seed=2", "rewards.0.weight=3", "seed=3"], TrainConfig)["seed"] == 3
    assert DATA["rewards"][0] == {"type": "exact"}  # type: ignore[index]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rat=1", "unknown field 'learning_rat'; did you mean learning_rate"),
        ("lora.rank=1", "unknown field 'rank'; known: alpha, dropout, r, target_modules"),
        ("environment.sise=1", "unknown field 'sise'; did you mean size"),
        ("seed", "not of the form key=value"),
        ("=1", "not of the form key=value"),
        ("rewards.5.weight=1", "'5' is not an index of a list of 2"),
        ("rewards.x=1", "unknown field 'x'"),
        ("seed.x=1", "'x' is inside 1"),
        ("stop=[a", "not a YAML value"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message.replace("[", r"\[")):
        apply_overrides(DATA, [override], TrainConfig)


def test_the_short_form_knows_its_own_names() -> None:
    assert apply_overrides({}, ["model_config.size=7b", "gpu_count=0"], SeedTrainRequest) == {
        "model_config": {"size": "7b"},
        "gpu_count": 0,
    }
