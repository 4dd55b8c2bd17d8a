"""WS /ws/v2."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from tests.fake_services import FakeJobs


def ask(app: FastAPI, *messages: str, headers: Mapping[str, str] = MappingProxyType({})) -> list[dict[str, Any]]:
    with TestClient(app).websocket_connect("/ws/v2", headers=dict(headers)) as socket:
        answers = []
        for message in messages:
            socket.send_text(message)
            answers.append(socket.receive_json())
        return answers


def test_questions_are_answered_in_order(app: FastAPI, jobs: FakeJobs) -> None:
    jobs.put("a")
    pong, metrics, health, job = ask(
        app, '{"type": "ping"}', '{"type": "metrics"}', '{"type": "health"}', '{"type": "job_status", "job_id": "a"}'
    )
    assert pong == {"type": "pong", "data": {"timestamp": 1_000_000.0}}
    assert (metrics["type"], metrics["data"]["training_metrics"]["running_jobs"]) == ("metrics_response", 1)
    assert metrics["data"]["api_metrics"]["active_connections"] == 1
    assert (health["type"], health["data"]["status"]) == ("health_response", "healthy")
    assert (job["type"], job["data"]["status"]) == ("job_status_response", "running")


@pytest.mark.parametrize(
    ("message", "code", "said"),
    [
        ("{", "invalid_request", "not valid JSON"),
        ("[" * 60_000, "invalid_request", "not valid JSON"),
        ("[]", "invalid_request", "valid dictionary"),
        ('{"type": "launch"}', "invalid_request", "'ping', 'metrics', 'health', 'job_status'"),
        ("{}", "invalid_request", "type"),
        ('{"type": "job_status"}', "invalid_request", "job_id: is required"),
        ('{"type": "ping", "x": 1}', "invalid_request", "x: unknown field"),
        ('{"type": "job_status", "job_id": "nobody"}', "not_found", "there is no job nobody"),
    ],
)
def test_a_wrong_question_is_answered_and_the_socket_stays(app: FastAPI, message: str, code: str, said: str) -> None:
    error, pong = ask(app, message, '{"type": "ping"}')
    assert (error["type"], error["data"]["code"], pong["type"]) == ("error", code, "pong")
    assert said in error["data"]["message"]


def test_a_foreign_page_cannot_open_it(app: FastAPI) -> None:
    with pytest.raises(WebSocketDisconnect) as refused:
        ask(app, headers={"origin": "https://evil.example"})
    assert refused.value.code == 1008
    assert ask(app, '{"type": "ping"}', headers={"origin": "http://testserver"})[0]["type"] == "pong"


def test_long_and_binary_messages_close_the_socket(app: FastAPI) -> None:
    for send, code in ((lambda s: s.send_text("x" * 70_000), 1009), (lambda s: s.send_bytes(b"x"), 1003)):
        with TestClient(app).websocket_connect("/ws/v2") as socket:
            send(socket)
            with pytest.raises(WebSocketDisconnect) as closed:
                socket.receive_text()
        assert closed.value.code == code
