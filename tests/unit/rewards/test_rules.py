"""Rule rewards on replies whose right grade is plain to see."""

from __future__ import annotations

from typing import Any

import pytest

from chatgrpo.environments.base import Task
from chatgrpo.environments.config import ReasoningGymConfig
from chatgrpo.environments.registry import build_source
from chatgrpo.errors import InvalidRequest
from chatgrpo.messages import assistant, user
from chatgrpo.rewards.config import (
    EnvironmentReward,
    ExactReward,
    FormatReward,
    LengthReward,
    NumericReward,
    PluginReward,
    RegexReward,
    VerifierReward,
)
from chatgrpo.rewards.extract import ExtractMode, extract_answer, to_number
from chatgrpo.rewards.registry import build_reward, reward
from chatgrpo.rollouts.episode import Episode


def episode(reply: str, *, num_sampled: int = 1, info: dict[str, Any] | None = None) -> Episode:
    return Episode(
        token_ids=(0,) * (num_sampled + 1),
        completion_mask=(False, *(True,) * num_sampled),
        logprobs=(0.0,) * (num_sampled + 1),
        prompt_length=1,
        turns=(),
        messages=(user("?"), assistant(reply)),
        truncated=False,
        info=info or {},
    )


def task(answer: str | None) -> Task:
    return Task(task_id="t", messages=(user("?"),), answer=answer)


@pytest.mark.parametrize(
    ("reply", "mode", "answer"),
    [
        ("  42 \n", "all", "42"),
        ("", "all", None),
        ("5 - 9 = -4.", "last_number", "-4"),
        ("8-6", "last_number", "6"),
        ("so x=-3", "last_number", "-3"),
        ("costs 1,234,567.50 in all", "last_number", "1234567.50"),
        ("first 1, then 2", "last_number", "2"),
        ("ends in 7.", "last_number", "7"),
        ("about 1.5e-3", "last_number", "1.5e-3"),
        ("\u2212" + "4", "last_number", "-4"),
        ("none", "last_number", None),
        ("thinking\nParis\n\n", "last_line", "Paris"),
        ("<answer>no</answer> wait <answer> yes\n</answer>", "answer_tag", "yes"),
        ("<answer>open", "answer_tag", None),
    ],
)
def test_extract(reply: str, mode: ExtractMode, answer: str | None) -> None:
    assert extract_answer(reply, mode) == answer


def test_to_number_wants_one_number_and_nothing_else() -> None:
    assert to_number(" 1,000.5 ") == 1000.5
    assert to_number("-4") == -4
    assert to_number("4 apples") is None
    assert to_number(None) is None


@pytest.mark.parametrize(
    ("reply", "answer", "grade"),
    [("is 12", "12", 1.0), ("12 or 13", "12", 0.0), ("12.0", "12", 1.0), ("none", "12", 0.0), ("5", "five", None)],
)
def test_numeric(reply: str, answer: str, grade: float | None) -> None:
    assert build_reward(NumericReward())(task(answer), episode(reply)) == grade


def test_numeric_tolerance_is_absolute() -> None:
    near = build_reward(NumericReward(tolerance=0.01))
    assert near(task("3.14159"), episode("3.14")) == 1.0
    assert near(task("3.14159"), episode("3.1")) == 0.0


def test_exact() -> None:
    assert build_reward(ExactReward())(task("Paris"), episode(" paris ")) == 1.0
    assert build_reward(ExactReward(ignore_case=False))(task("Paris"), episode("paris")) == 0.0
    assert build_reward(ExactReward(extract="last_line"))(task("Paris"), episode("It is\nParis")) == 1.0
    assert build_reward(ExactReward())(task(None), episode("Paris")) is None


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("<answer>b</answer><think>a</think>", 0.5),
        ("<think>a</think><think>a</think><answer>b</answer>", 0.5),
        ("</think><think><answer>b</answer>", 0.5),
        ("plain", 0.0),
    ],
)
def test_format_counts_tags_once_and_in_order(reply: str, grade: float) -> None:
    assert build_reward(FormatReward(tags=["think", "answer"]))(task(None), episode(reply)) == grade


@pytest.mark.parametrize(("sampled", "grade"), [(3, 1.0), (4, 1.0), (6, 0.5), (8, 0.0), (9, 0.0)])
def test_length_falls_linearly(sampled: int, grade: float) -> None:
    reward_ = build_reward(LengthReward(target_tokens=4, max_tokens=8))
    assert reward_(task(None), episode("x", num_sampled=sampled)) == grade


def test_regex_is_searched_and_cut_off_when_it_backtracks_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_reward(RegexReward(pattern=r"\d+"))(task(None), episode("a 1")) == 1.0
    assert build_reward(RegexReward(pattern=r"^\d+$"))(task(None), episode("a 1")) == 0.0
    monkeypatch.setattr("chatgrpo.rewards.rules.REGEX_TIMEOUT_S", 0.05)
    with pytest.raises(TimeoutError):
        build_reward(RegexReward(pattern=r"(.|.)*(.|.)*(.|.)*\d{3}$"))(task(None), episode("a" * 5000))


def test_environment_pay_is_a_reward_only_where_something_was_paid() -> None:
    pay = build_reward(EnvironmentReward())
    assert pay(task(None), episode("", info={"environment_reward": 0.25})) == 0.25
    assert pay(task(None), episode("", info={"environment_reward": None})) is None


def test_verifier_asks_the_data_set_that_made_the_task() -> None:
    made = build_source(ReasoningGymConfig(size=1), split="train", seed=0, num_eval=0).task(0)
    whole, last = build_reward(VerifierReward()), build_reward(VerifierReward(extract="last_number"))
    assert whole(made, episode(str(made.answer))) == 1.0
    assert last(made, episode(f"I think it is {made.answer}.")) == 1.0
    assert last(made, episode("no idea")) == 0.0


def test_verifier_of_other_tasks_compares_with_the_answer() -> None:
    verify = build_reward(VerifierReward())
    assert verify(task("1000"), episode("1,000.0")) == 1.0
    assert verify(task("Paris"), episode("paris")) == 1.0
    assert verify(task("Paris"), episode("Rome")) == 0.0
    assert verify(task(None), episode("Rome")) is None


@reward("test_rules_contains")
def _contains(task: Task, episode: Episode, *, word: str) -> float:
    return float(word in episode.reply)


def test_plugin_gets_its_parameters() -> None:
    build = build_reward(PluginReward(name="test_rules_contains", params={"word": "yes"}))
    assert build(task(None), episode("oh yes")) == 1.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PluginReward(name="test_rules_contain"), r"'test_rules_contain'; did you mean test_rules_contains"),
        (PluginReward(name="test_rules_contains", params={"wrod": 1}), r"does not take \{'wrod': 1\}"),
        (RegexReward(pattern="("), "is not a regular expression"),
        (LengthReward(target_tokens=5, max_tokens=5), "must be above target_tokens 5"),
    ],
)
def test_impossible_rewards_are_refused_when_built(config: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        build_reward(config)
