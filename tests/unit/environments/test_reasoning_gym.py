"""Procedural tasks: held-out questions are other questions, and the same call gives the same tasks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from chatgrpo.environments.config import ReasoningGymConfig
from chatgrpo.environments.reasoning_gym import score_answer
from chatgrpo.environments.registry import build_source
from chatgrpo.errors import InvalidRequest

# 200 distinct sums in all: seeds alone would hardly keep two sets apart.
SMALL = ReasoningGymConfig(
    dataset="chain_sum", params={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}, size=1000
)


def questions(config: ReasoningGymConfig, split: str, *, seed: int = 0, num_eval: int = 50) -> list[str]:
    source = build_source(config, split=split, seed=seed, num_eval=num_eval)  # type: ignore[arg-type]
    return [source.task(i).messages[-1].content for i in range(len(source))]


def test_train_and_held_out_questions_are_disjoint_by_text() -> None:
    train, held_out = questions(SMALL, "train"), questions(SMALL, "eval")
    assert not set(train) & set(held_out)
    assert len(held_out) == len(set(held_out)) == 50
    assert len(train) == len(set(train)) == 150  # the whole rest of the 200


def test_held_out_set_is_the_same_for_every_seed_and_training_is_not() -> None:
    assert questions(SMALL, "eval", seed=1) == questions(SMALL, "eval", seed=2)
    assert questions(SMALL, "train", seed=1) == questions(SMALL, "train", seed=1)
    assert questions(SMALL, "train", seed=1) != questions(SMALL, "train", seed=2)


def test_another_process_draws_the_same_tasks() -> None:
    code = (
        "from chatgrpo.environments.config import ReasoningGymConfig as C\n"
        "from chatgrpo.environments.registry import build_source\n"
        "s = build_source(C(dataset='gcd', size=5), split='train', seed=3, num_eval=2)\n"
        "print([s.task(i).task_id for i in range(len(s))])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    source = build_source(ReasoningGymConfig(dataset="gcd", size=5), split="train", seed=3, num_eval=2)
    assert other.stdout.strip() == str([source.task(i).task_id for i in range(len(source))])


def test_too_few_questions_say_how_many_there_are_and_what_to_change() -> None:
    with pytest.raises(InvalidRequest, match=r"only 200 distinct questions.*lower num_eval_prompts") as caught:
        questions(SMALL, "eval", num_eval=300)
    assert caught.value.field == "environment.params"
    with pytest.raises(InvalidRequest, match="only 200 distinct questions"):
        questions(SMALL, "train", num_eval=200)


def test_unknown_names_come_with_close_matches() -> None:
    with pytest.raises(InvalidRequest, match=r"'chain_sums'; did you mean chain_sum") as caught:
        questions(ReasoningGymConfig(dataset="chain_sums"), "train")
    assert caught.value.field == "environment.dataset"
    with pytest.raises(InvalidRequest, match=r"no parameter 'max_digit'; did you mean max_digits") as caught:
        questions(ReasoningGymConfig(params={"max_digit": 1}), "train")
    assert caught.value.field == "environment.params.max_digit"


@pytest.mark.parametrize("params", [{"min_terms": 5, "max_terms": 2}, {"min_terms": "two"}, {"seed": 3}])
def test_impossible_parameters_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        questions(ReasoningGymConfig(params=params), "train")


def test_the_entry_of_a_task_satisfies_the_data_sets_own_verifier() -> None:
    source = build_source(ReasoningGymConfig(dataset="countdown", size=3), split="train", seed=0, num_eval=0)
    for index in range(3):
        task = source.task(index)
        assert score_answer(task.metadata["entry"]["metadata"]["expression"], task.metadata) == 1.0
        assert score_answer("1", task.metadata) < 0.5


def test_system_prompt_and_suffix_surround_the_question() -> None:
    config = ReasoningGymConfig(dataset="gcd", size=1, system_prompt="Be brief.", prompt_suffix=" Think.")
    task = build_source(config, split="train", seed=0, num_eval=0).task(0)
    assert [m.role for m in task.messages] == ["system", "user"]
    assert task.messages[1].content == task.metadata["entry"]["question"] + " Think."
