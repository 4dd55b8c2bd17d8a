"""The judge: grades in many words, retries within bounds, failures that say why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import httpx
import pytest
import stamina

from chatgrpo.environments.base import Task
from chatgrpo.errors import InvalidRequest
from chatgrpo.messages import assistant, tool, user
from chatgrpo.rewards.config import JudgeReward
from chatgrpo.rewards.judge import Judge, parse_grade
from chatgrpo.rollouts.episode import Episode

TASK = Task(task_id="t", messages=(user("capital of France?"),), answer="Paris")
EPISODE = Episode(
    token_ids=(1,),
    completion_mask=(True,),
    logprobs=(0.0,),
    prompt_length=0,
    turns=(),
    messages=(user("capital of France?"), assistant("let me look"), tool("Paris"), assistant("Paris!")),
    truncated=False,
)


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


def judge(answer: Callable[[httpx.Request], httpx.Response], **fields: object) -> Judge:
    config = JudgeReward(base_url="http://judge/v1", model="m", **fields)  # type: ignore[arg-type]
    return Judge(config, transport=httpx.MockTransport(answer))


def says(text: str) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"content": text}}]})


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Grade: 7", 7),
        ("The reply has 3 faults of 9.\n\nGrade: 8.5", 8.5),
        ("**Score:** 10", 10),
        ('{"grade": 4, "why": "2 errors"}', 4),
        ("I'd say 6/10.", 6),
        ("6 out of 10, it has 2 typos", 6),
        ("9", 9),
        ("0.", 0),
        ("grade is 3", 3),
        ("First I thought grade: 2. Final grade: 5", 5),
    ],
)
def test_grades_are_found_in_what_judges_write(text: str, grade: float) -> None:
    assert parse_grade(text) == grade


@pytest.mark.parametrize("text", ["", "very good", "Grade: 11", "Grade: -1", "85"])
def test_no_grade_from_0_to_10_is_a_failure(text: str) -> None:
    with pytest.raises(ValueError, match="grade"):
        parse_grade(text)


def test_the_judge_sees_conversation_reply_and_answer_and_the_reward_is_a_tenth() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return says("Grade: 9")

    assert judge(answer, criteria="Is it right?")(TASK, EPISODE) == 0.9
    assert str(seen[0].url) == "http://judge/v1/chat/completions"
    body = json.loads(seen[0].content)
    text = body["messages"][0]["content"]
    assert body["model"] == "m"
    assert "Is it right?" in text
    assert "<conversation>\nuser: capital of France?\nassistant: let me look\ntool: Paris\n</conversation>" in text
    assert "<reply>\nParis!\n</reply>" in text
    assert "<correct_answer>\nParis\n</correct_answer>" in text


def test_passing_trouble_is_retried() -> None:
    answers = iter([httpx.Response(429), httpx.Response(503), says("Grade: 1")])
    assert judge(lambda request: next(answers))(TASK, EPISODE) == 0.1


def test_trouble_that_stays_is_raised_after_three_attempts() -> None:
    calls: list[int] = []

    def down(request: httpx.Request) -> httpx.Response:
        calls.append(1)
        return httpx.Response(500)

    with pytest.raises(httpx.HTTPStatusError):
        judge(down)(TASK, EPISODE)
    assert len(calls) == 3


def test_a_refusal_is_not_retried() -> None:
    calls: list[int] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        calls.append(1)
        return httpx.Response(401)

    with pytest.raises(httpx.HTTPStatusError):
        judge(refuse)(TASK, EPISODE)
    assert len(calls) == 1


def test_a_judge_without_answer_is_a_timeout() -> None:
    def silent(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow", request=request)

    with pytest.raises(TimeoutError, match="the judge did not answer"):
        judge(silent)(TASK, EPISODE)


@pytest.mark.parametrize("body", ["nothing", "{}", '{"choices": []}', '{"choices": [{"message": {"content": null}}]}'])
def test_what_is_no_chat_completion_is_named(body: str) -> None:
    with pytest.raises(ValueError, match="the judge's answer"):
        judge(lambda request: httpx.Response(200, text=body))(TASK, EPISODE)


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest, match="JUDGE_KEY is not set"):
        judge(lambda r: says("1"), api_key_env="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return says("Grade: 2")

    judge(answer, api_key_env="JUDGE_KEY")(TASK, EPISODE)
    assert seen == ["Bearer s3cret"]
