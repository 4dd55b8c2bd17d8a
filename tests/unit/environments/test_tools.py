"""Tool use: calls are parsed, errors are answered, nothing breaks the episode."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgrpo.environments.base import Environment
from chatgrpo.environments.calculator import calculator
from chatgrpo.environments.config import DatasetConfig, ToolsConfig
from chatgrpo.environments.registry import build_source
from chatgrpo.environments.toolbox import find_tool, tool
from chatgrpo.environments.tools import Call, parse_calls
from chatgrpo.errors import InvalidRequest

release = threading.Event()


@tool("test_tools_hang", "Never answers.")
def _hang() -> str:
    release.wait()
    return "late"


@tool("test_tools_add", "Adds, asynchronously.")
async def _add(a: int, b: int = 1) -> dict[str, int]:
    return {"sum": a + b}


@tool("test_tools_fail", "Always fails.")
def _fail() -> str:
    raise RuntimeError("database is down")


@pytest.fixture(autouse=True)
def _release() -> Iterator[None]:
    release.clear()
    yield
    release.set()


def environment(folder: Path, *, max_turns: int = 3, timeout_s: float = 30.0, system: str | None = None) -> Environment:
    (folder / "a.jsonl").write_text(json.dumps({"prompt": "17 * 3?", "answer": "51"}) + "\n")
    config = ToolsConfig(
        tools=["calculator", "test_tools_hang", "test_tools_add", "test_tools_fail"],
        tasks=DatasetConfig(paths=[str(folder / "a.jsonl")], system_prompt=system),
        max_turns=max_turns,
        tool_timeout_s=timeout_s,
    )
    source = build_source(config, split="train", seed=0, num_eval=0)
    return source.environment(source.task(0))


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def test_a_call_is_answered_and_a_reply_without_one_ends_the_episode(tmp_path: Path) -> None:
    env = environment(tmp_path)
    env.start()
    step = env.step("Let me see. " + call("calculator", expression="17 * 3"))
    assert [(m.role, m.name, m.content) for m in step.messages] == [("tool", "calculator", "51")]
    assert not step.done
    end = env.step("It is 51.")
    assert end.done
    assert end.info == {"tool_calls": 1, "tool_errors": 0}


def test_tools_are_described_in_the_system_message(tmp_path: Path) -> None:
    first, question = environment(tmp_path).start()
    assert first.role == "system"
    described = [json.loads(line) for line in first.content.splitlines() if line.startswith('{"name"')]
    assert [t["name"] for t in described] == ["calculator", "test_tools_hang", "test_tools_add", "test_tools_fail"]
    assert described[0]["parameters"]["properties"]["expression"]["type"] == "string"
    assert described[2]["parameters"]["required"] == ["a"]
    assert question.content == "17 * 3?"
    merged = environment(tmp_path, system="Be brief.").start()
    assert [m.role for m in merged] == ["system", "user"]
    assert merged[0].content.startswith("Be brief.\n\nYou may call tools.")


def test_several_calls_are_answered_in_order(tmp_path: Path) -> None:
    step = environment(tmp_path).step(call("test_tools_add", a=2) + call("calculator", expression="(1 + 2) ** 3 / 2"))
    assert [m.content for m in step.messages] == ['{"sum": 3}', "13.5"]


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (call("calculater"), "error: no tool is called 'calculater'; there are calculator, test_tools_hang"),
        (call("test_tools_fail"), "error: test_tools_fail: database is down"),
        (call("test_tools_add", a="two"), "error: test_tools_add: a: Input should be a valid integer"),
        (call("test_tools_add"), "error: test_tools_add: a: Missing required argument"),
        (call("calculator", expression="1/0"), "error: calculator: division by zero"),
        ("<tool_call>calculator(3)</tool_call>", "error: the call is not valid JSON"),
        ("<tool_call>[1]</tool_call>", "error: a call looks like"),
        (
            '<tool_call>{"name": "calculator", "arguments": 3}</tool_call>',
            "error: arguments must be an object, got int",
        ),
        ('<tool_call>{"name": "calculator"', "error: </tool_call> is missing"),
    ],
)
def test_a_bad_call_is_answered_with_what_is_wrong(reply: str, answer: str, tmp_path: Path) -> None:
    step = environment(tmp_path).step(reply)
    assert step.messages[0].role == "tool"
    assert step.messages[0].content.startswith(answer)
    assert not step.done
    assert step.info["tool_errors"] == 1


def test_a_hanging_tool_is_answered_with_its_deadline(tmp_path: Path) -> None:
    step = environment(tmp_path, timeout_s=0.05).step(call("test_tools_hang") + call("calculator", expression="1+1"))
    assert [m.content for m in step.messages] == ["error: no answer within 0.05 s", "2"]


def test_a_call_on_the_last_turn_ends_the_episode_as_truncated(tmp_path: Path) -> None:
    env = environment(tmp_path, max_turns=1)
    step = env.step(call("calculator", expression="1"))
    assert step.done
    assert step.info["truncated"] is True


def test_unknown_tools_are_refused_with_close_matches() -> None:
    with pytest.raises(InvalidRequest, match=r"'calculater'; did you mean calculator\?"):
        find_tool("calculater")


@given(st.text())
def test_parsing_never_raises(text: str) -> None:
    for reply in (text, f"<tool_call>{text}</tool_call>", f"<tool_call>{text}"):
        assert all(isinstance(found, Call) for found in parse_calls(reply))


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 3 * 4", "14"),
        ("-(2 - 5)", "3"),
        ("7 // 2", "3"),
        ("7 % 4", "3"),
        ("1 / 4", "0.25"),
        ("4 / 2", "2"),
        ("2 ** 0.5", "1.4142135623730951"),
        ("2**100", "1267650600228229401496703205376"),
    ],
)
def test_calculator(expression: str, value: str) -> None:
    assert calculator(expression) == value


NO_ARITHMETIC = ["__import__('os')", "abs(1)", "a", "'a' * 9", "True", "1 if 1 else 2", "[1][0]", "x.y", "1 << 9", "1j"]
TOO_LARGE = ["9**9**9", "2**-9**9", "10**5000", "0.5**-9999", "1e308 * 10", "1" * 501, "(2**4000 + 1) * (2**4000 + 1)"]


@pytest.mark.parametrize("expression", [*NO_ARITHMETIC, *TOO_LARGE, "(-1) ** 0.5", "1 +", ""])
def test_calculator_refuses_all_but_arithmetic(expression: str) -> None:
    with pytest.raises(ValueError, match=r"not|too large|characters"):
        calculator(expression)
