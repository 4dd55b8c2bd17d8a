from __future__ import annotations

from typing import Any

import pytest

from chatgrpo.errors import InvalidRequest
from chatgrpo.jobs.seed_request import is_seed_request, parse_train_request

SEED = {
    "experiment_name": "production_agent",
    "agent_type": "MultiTurnAgent",
    "model_config": {"model_type": "smollm2", "size": "135m"},
    "training_data": "/path/to/data",
    "num_epochs": 50,
    "cpu_cores": 8,
    "memory_gb": 32,
    "gpu_count": 4,
    "priority": 1,
}


def test_the_documented_request_becomes_a_train_config() -> None:
    config = parse_train_request(SEED)

    assert config.experiment_name == "production_agent"
    assert config.model == "smollm2-135m-instruct"
    assert config.environment.type == "dialogue"
    assert config.environment.paths == ["/path/to/data"]
    assert (config.num_epochs, config.prompts_per_step, config.num_generations) == (50, 4, 8)
    assert config.num_workers == 4
    assert config.resources.model_dump(exclude={"threads_per_worker"}) == {
        "cpus_per_worker": 2.0,
        "gpus_per_worker": 1.0,
        "memory_gb_per_worker": 8.0,
    }
    assert (config.epsilon, config.entropy_coef, config.lr_scheduler_type) == (0.2, 0.01, "cosine")
    assert config.learning_rate == 1e-4
    assert config.early_stopping is not None


def test_a_full_configuration_passes_as_it_is() -> None:
    config = parse_train_request({"model": "tiny", "max_steps": 3, "learning_rate": 1e-5})

    assert (config.model, config.max_steps) == ("tiny", 3)
    assert not is_seed_request({"experiment_name": "x", "num_epochs": 2, "optimizer": "sgd", "priority": 3})


def test_absent_resources_are_the_platforms_choice() -> None:
    config = parse_train_request({"training_data": "reasoning_gym:chain_sum"})

    assert config.num_workers == 1
    assert config.resources.gpus_per_worker is None
    assert config.resources.memory_gb_per_worker is None
    assert config.environment.type == "reasoning_gym"


def test_no_gpu_is_one_worker_on_the_cpu() -> None:
    config = parse_train_request(SEED | {"gpu_count": 0})

    assert (config.num_workers, config.resources.gpus_per_worker, config.resources.cpus_per_worker) == (1, 0.0, 8.0)


def test_switches_are_honoured() -> None:
    config = parse_train_request(
        SEED | {"enable_checkpointing": False, "enable_early_stopping": False, "enable_wandb": True}
    )

    assert config.save_steps is None
    assert config.early_stopping is None
    assert config.report_to == ["wandb"]
    assert parse_train_request(SEED | {"enable_wandb": False}).report_to == []


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"batch_size": 30}, "batch_size", "write 32"),
        ({"batch_size": 3}, "batch_size", "write 8"),
        ({"gpu_count": 3}, "batch_size", "write 24"),
        ({"grpo_value_loss_coef": 0.1}, "grpo_value_loss_coef", "no value function"),
        ({"optimizer": "lion"}, "optimizer", "'lion'"),
        ({"num_epochs": 0}, "num_epochs", "got '0'"),
        ({"training_data": []}, "training_data", "empty"),
        ({"training_data": ["reasoning_gym:gcd", "x.jsonl"]}, "training_data", "one reasoning_gym"),
        ({"model_config": {"model_type": "llama2", "sise": "7b"}}, "model_config", "'sise'"),
        ({"model_config": {"model_type": "llama2", "size": "8b"}}, "model", "7b"),
        ({"gpus": 1}, "gpus", "Extra"),
        ({"experiment_name": ""}, "experiment_name", "at least 1"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(change: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        parse_train_request(SEED | change)
    assert refused.value.field == field
