"""The body of prompts, field by field."""

from __future__ import annotations

from typing import Any

import pytest

from chatgrpo.errors import InvalidRequest
from chatgrpo.jobs.prompts_request import PromptsRequest, is_prompts_request
from chatgrpo.jobs.seed_request import validate
from chatgrpo.training.config import TrainConfig

PROMPTS = ["one", "two", "one", "three", "four"]
JUDGE = {"type": "judge", "base_url": "http://127.0.0.1:1/v1", "model": "wise"}


def translated(**fields: Any) -> TrainConfig:
    return validate(PromptsRequest, {"prompts": PROMPTS} | fields).to_train_config(model="tiny")


def test_prompts_alone_become_a_train_config() -> None:
    config = translated()
    assert config.model == "tiny"
    assert config.environment.model_dump(exclude={"eval_fraction"}) == {
        "type": "inline",
        "prompts": ["one", "two", "three", "four"],
        "system_prompt": None,
    }
    assert (config.prompts_per_step, config.num_generations, config.max_steps, config.num_iterations) == (4, 8, 1, 1)
    assert [reward.model_dump() for reward in config.rewards] == [
        {"type": "length", "weight": 1.0, "target_tokens": 128, "max_tokens": 256}
    ]
    assert config.max_completion_length == 256
    assert (config.num_workers, config.min_workers, config.num_eval_prompts) == (1, None, 0)
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


def test_every_field_has_its_effect() -> None:
    config = translated(
        strategy="computational",
        num_iterations=7,
        parallel_batch_size=16,
        use_neural_rewards=True,
        use_ruler_rewards=True,
        rewards=[JUDGE],
        distributed_config={"num_workers": 4, "min_workers": 2, "cpus_per_worker": 0.5, "gpus_per_worker": 0},
    )
    assert (config.max_steps, config.num_iterations, config.rollout_batch_size) == (7, 1, 16)
    assert [reward.type for reward in config.rewards] == ["judge"]
    assert (config.num_workers, config.min_workers) == (4, 2)
    assert (config.resources.cpus_per_worker, config.resources.gpus_per_worker) == (0.5, 0)


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"strategy": "distributed"}, "strategy", "'computational'"),
        ({"use_ruler_rewards": True}, "use_ruler_rewards", "in the field rewards"),
        ({"use_ruler_rewards": True, "rewards": [{"type": "plugin", "name": "x"}]}, "use_ruler_rewards", "judge"),
        ({"use_neural_rewards": True}, "use_neural_rewards", "in the field rewards"),
        ({"distributed_config": {"num_workers": 3}}, "distributed_config.num_workers", "4 different prompts"),
        ({"distributed_config": {"min_workers": 2}}, "distributed_config.min_workers", "at most num_workers"),
        ({"distributed_config": {"backend": "nccl"}}, "distributed_config.backend", "Extra"),
        ({"prompts": ["a", " \n"]}, "prompts[1]", "blank"),
        ({"prompts": []}, "prompts", "at least 1"),
        ({"prompts": ["a"] * 1025}, "prompts", "at most 1024"),
        ({"num_iterations": 0}, "num_iterations", "greater than or equal to 1"),
        ({"parallel_batch_size": 0}, "parallel_batch_size", "greater than or equal to 1"),
        ({"rewards": []}, "rewards", "at least 1"),
        ({"learning_rate": 1}, "learning_rate", "Extra"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        translated(**fields)
    assert refused.value.field == field


def test_neural_rewards_may_come_from_a_plugin() -> None:
    config = translated(use_neural_rewards=True, rewards=[{"type": "plugin", "name": "helpfulness"}])
    assert [reward.type for reward in config.rewards] == ["plugin"]


@pytest.mark.parametrize(
    ("body", "is_one"),
    [
        ({"prompts": ["a"]}, True),
        ({"use_ruler_rewards": True}, True),
        ({"training_data": "x", "num_epochs": 2}, False),
        ({"num_iterations": 2, "rewards": [JUDGE]}, False),
        ({}, False),
    ],
)
def test_the_form_is_told_by_its_own_names(body: dict[str, Any], is_one: bool) -> None:
    assert is_prompts_request(body) is is_one
