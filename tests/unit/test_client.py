"""The Python client against the real API over fakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from chatgrpo.api.app import create_app
from chatgrpo.api.services import Services
from chatgrpo.client import Client, ServerEvent, error_of, parse_events
from chatgrpo.config import PlatformConfig
from chatgrpo.errors import Conflict, InvalidRequest, NotFound, PlatformError, RateLimited, Unavailable
from chatgrpo.gateway.config import GatewayConfig
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.memory import MemoryStore
from chatgrpo.state.tiered import TieredStore
from tests.fake_services import FakeChat, FakeJobs
from tests.fakes import FakeClock


@pytest.fixture
def jobs() -> FakeJobs:
    return FakeJobs()


@pytest.fixture
def client(tmp_path: Path, jobs: FakeJobs) -> Iterator[Client]:
    clock = FakeClock()
    services = Services(
        config=PlatformConfig(
            home=tmp_path, default_model="tiny", gateway=GatewayConfig(allowed_hosts=("testserver",))
        ),
        clock=clock,
        jobs=jobs,
        chat=FakeChat("Hel", "lo"),
        conversations=Conversations(TieredStore(MemoryStore(), clock=clock), clock=clock),
    )
    with TestClient(create_app(services)) as http:
        yield Client(http=http)


def test_train_and_look(client: Client, jobs: FakeJobs) -> None:
    submitted = client.train({"model": "tiny", "max_steps": 5})
    assert client.job(submitted["job_id"])["status"] == "queued"
    assert [job["job_id"] for job in client.jobs(state="queued")] == ["job-0"]
    assert client.cancel("job-0")["acted"] == "cancel"
    assert client.delete("job-0")["acted"] == "delete"
    assert [getattr(client, act)("job-0")["acted"] for act in ("pause", "resume", "retry")] == [
        "pause",
        "resume",
        "retry",
    ]
    assert client.logs("job-0", tail=1) == "step 2"
    assert "".join(client.follow_logs("job-0")) == "step 1\nstep 2\n"
    assert client.trajectories("job-0", offset=99) == [{"episode": 99}]
    assert client.events("job-0") == [{"to": "queued"}]
    assert client.checkpoints("job-0") == [{"step": 10}]


def test_wait_returns_the_ended_job(client: Client, jobs: FakeJobs) -> None:
    jobs.put("a", status="running")
    seen: list[str] = []

    def sleep(_: float) -> None:
        if len(seen) == 3:
            jobs.put("a", status="succeeded")

    view = client.wait("a", on_progress=lambda v: seen.append(v["status"]), sleep=sleep)
    assert (view["status"], seen) == ("succeeded", ["running"] * 3 + ["succeeded"])


def test_wait_is_patient_with_a_platform_that_restarts(
    client: Client, jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.put("a", status="succeeded")
    get, answers = client.job, iter([Unavailable("restarting"), Unavailable("restarting"), None])

    def job(job_id: str) -> dict[str, Any]:
        if error := next(answers):
            raise error
        return get(job_id)

    monkeypatch.setattr(client, "job", job)
    assert client.wait("a", sleep=lambda s: None)["status"] == "succeeded"
    answers = iter([Unavailable("restarting")] * 9)
    with pytest.raises(Unavailable):
        client.wait("a", sleep=lambda s: None, patience_s=5)


def test_chat_whole_and_streamed(client: Client) -> None:
    whole = client.chat("Hi", temperature=0.0)
    assert whole["response"] == "Hello"
    *pieces, done = client.stream("More", conversation_id=whole["conversation_id"])
    assert pieces == ["Hel", "lo"]
    assert isinstance(done, dict)
    assert done["turn_count"] == 2
    assert "tiny" in [model["id"] for model in client.models()]
    assert client.health()["status"] == "healthy"
    assert client.metrics()["training_metrics"]["queue_size"] == 0
    assert client.status()["default_model"] == "tiny"


def test_errors_arrive_as_what_they_are(client: Client, jobs: FakeJobs) -> None:
    with pytest.raises(NotFound, match="there is no job nobody"):
        client.job("nobody")
    with pytest.raises(InvalidRequest) as refused:
        client.train({"learning_rate": -1})
    assert refused.value.field == "learning_rate"
    assert str(refused.value).startswith("learning_rate: should be greater than 0")
    jobs.put("a")
    with pytest.raises(Conflict, match="job a is running"):
        list(client.stream("Hi", model="a"))
    with pytest.raises(NotFound):
        client.logs("nobody")
    with pytest.raises(NotFound):
        list(client.follow_logs("nobody"))


def test_error_bodies() -> None:
    def body(**info: Any) -> dict[str, Any]:
        return {"error": {"message": "m", **info}}

    assert isinstance(error_of(body(code="rate_limited"), 429), RateLimited)
    conflict = error_of(body(code="conflict", current_version=4), 409)
    assert isinstance(conflict, Conflict)
    assert conflict.current_version == 4
    assert type(error_of(body(code="new_kind"), 418)) is PlatformError
    assert "status 502" in str(error_of("<html>", 502))


def test_no_platform_is_said_plainly() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    client = Client(http=httpx.Client(transport=httpx.MockTransport(refuse), base_url="http://nowhere"))
    with pytest.raises(Unavailable, match="no platform answers at http://nowhere"):
        client.health()


def test_a_broken_log_is_taken_up_where_it_broke() -> None:
    asked: list[str | None] = []

    def serve(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("last-event-id"))
        if len(asked) == 1:

            def broken() -> Iterator[bytes]:
                yield b'event: log\ndata: {"text": "one "}\nid: 4\n\n'
                raise httpx.ReadError("connection lost")

            return httpx.Response(200, content=broken())
        return httpx.Response(200, content=b'event: log\ndata: {"text": "two"}\nid: 7\n\nevent: end\ndata: {}\n\n')

    client = Client(http=httpx.Client(transport=httpx.MockTransport(serve), base_url="http://p"))
    assert list(client.follow_logs("a")) == ["one ", "two"]
    assert asked == [None, "4"]


def test_event_stream_grammar() -> None:
    lines = [
        ": ping",
        "",
        "event: log",
        'data: {"a":',
        "data: 1}",
        "id: 3",
        "",
        'data: {"b": 2}',
        "",
        "event: lost",
        "",
    ]
    assert list(parse_events(iter(lines))) == [
        ServerEvent("log", {"a": 1}, "3"),
        ServerEvent("message", {"b": 2}, None),
    ]


def test_the_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATGRPO_API_KEY", "cgk_environment")
    for client, key in ((Client(key="cgk_given"), "cgk_given"), (Client(), "cgk_environment")):
        with client:
            assert client._http.headers["authorization"] == f"Bearer {key}"
