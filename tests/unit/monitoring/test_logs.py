"""Log lines: fields, the trace, no secrets."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider

from chatgrpo.monitoring.logs import configure_logging, masked


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # basicConfig(force=True) closes what it removes; the capturing handlers of the test run must live on.
    root.handlers = []
    yield
    root.handlers, root.level = handlers, level


def test_json_lines_carry_level_logger_and_trace(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", style="json")
    with TracerProvider().get_tracer("t").start_as_current_span("s") as span:
        logging.getLogger("chatgrpo.jobs").info("retry run=%s delay_s=%.1f", "r7", 4.1)
    logging.getLogger("chatgrpo.jobs").debug("not shown")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(li["level"], li["logger"], li["event"]) for li in lines] == [
        ("info", "chatgrpo.jobs", "retry run=r7 delay_s=4.1")
    ]
    assert lines[0]["trace_id"] == f"{span.get_span_context().trace_id:032x}"


def test_text_lines_show_errors(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("warning")
    try:
        raise ValueError("broken token=abc123")
    except ValueError:
        logging.getLogger("x").exception("tick failed")
    said = capsys.readouterr().err
    assert "event='tick failed'" in said
    assert "ValueError: broken token=***" in said
    assert "trace_id" not in said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("key cgk_01ARZ3NDEKTSV4RRFFQ69G5FAV_00ff refused", "key cgk_*** refused"),
        ("redis://h?password=x&y", "redis://h?password=***"),
        ("no route to redis://:hunter2@cache:6379/0", "no route to redis://:***@cache:6379/0"),
        ("see https://example.com:443/a@b", "see https://example.com:443/a@b"),
        ("step=3 tokens=40", "step=3 tokens=40"),
    ],
)
def test_secrets_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
