"""Subscriptions: what is told to whom, from where, and what happens to those who do not read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from chatgrpo.api.app import create_app
from chatgrpo.api.live_hub import LiveHub
from chatgrpo.api.live_reader import SocketReader
from chatgrpo.api.live_sources import AlertsSource, Change, JobSource
from chatgrpo.api.services import Services
from chatgrpo.config import PlatformConfig
from chatgrpo.errors import Unavailable
from chatgrpo.gateway.gateway import STATE_DB
from chatgrpo.monitoring.outbox import Outbox
from tests.fake_services import FakeChat, FakeJobs
from tests.fakes import FakeClock


class Told:
    """A source that says what the test puts in."""

    interval_s = 0.0

    def __init__(self) -> None:
        self.news: list[Change] = []
        self.num_looks = 0
        self.error: Exception | None = None

    async def look(self) -> list[Change]:
        self.num_looks += 1
        if self.error:
            raise self.error
        news, self.news = self.news, []
        return news

    def snapshot(self, owner: str) -> dict[str, Any]:
        return {"for": owner}


class Reader:
    def __init__(self, owner: str = "ann") -> None:
        self.owner = owner
        self.seen: list[dict[str, Any]] = []

    def offer(self, text: str) -> None:
        self.seen.append(json.loads(text))

    @property
    def data(self) -> list[Any]:
        return [event["data"] for event in self.seen]


@pytest.fixture
def source() -> Told:
    return Told()


@pytest.fixture
def hub(source: Told) -> LiveHub:
    return LiveHub(lambda topic: source, interval_s=0.0, linger_s=1000.0)


async def told(source: Told, *changes: Change) -> None:
    """The hub has said this."""
    source.news = list(changes)
    looks = source.num_looks
    while source.num_looks < looks + 2:  # noqa: ASYNC110 - a look says nothing to anybody
        await asyncio.sleep(0)


def change(number: int, channel: str = "t") -> Change:
    return Change(channel=channel, data={"n": number})


async def test_an_event_goes_to_all_who_subscribed_and_is_looked_at_once(hub: LiveHub, source: Told) -> None:
    ann, bob = Reader(), Reader("bob")
    begun = await hub.subscribe(ann, ["t"], None)
    assert (begun.resumed, [json.loads(text)["data"] for text in begun.events]) == (False, [{"for": "ann"}])
    await hub.subscribe(bob, ["t"], None)
    await told(source, change(1), change(2))
    assert ann.data == bob.data == [{"n": 1}, {"n": 2}]
    assert ann.seen[0] == {"type": "event", "topic": "t", "id": ann.seen[0]["id"], "snapshot": False, "data": {"n": 1}}
    hub.unsubscribe(bob, ["t"])
    await told(source, change(3))
    assert (len(ann.seen), len(bob.seen)) == (3, 2)


async def test_who_comes_back_gets_what_he_missed_while_nobody_read(hub: LiveHub, source: Told) -> None:
    ann = Reader()
    await hub.subscribe(ann, ["t"], None)
    await told(source, change(1))
    hub.unsubscribe(ann, ["t"])
    await told(source, change(2), change(3))
    again = Reader()
    begun = await hub.subscribe(again, ["t"], ann.seen[-1]["id"])
    assert (begun.resumed, [json.loads(text)["data"]["n"] for text in begun.events]) == (True, [2, 3])
    await told(source, change(4))
    assert again.data == [{"n": 4}]


async def test_an_unknown_id_is_answered_with_how_it_is(hub: LiveHub) -> None:
    begun = await hub.subscribe(Reader(), ["t"], "another-7")
    assert (begun.resumed, json.loads(begun.events[0])["snapshot"]) == (False, True)


async def test_a_channel_of_a_tenant_is_his_alone(hub: LiveHub, source: Told) -> None:
    ann, bob = Reader(), Reader("bob")
    for reader in (ann, bob):
        await hub.subscribe(reader, ["t"], None)
    first = hub._log.last_id
    await told(source, change(1, "t@ann"), change(2))
    assert (ann.data, bob.data) == ([{"n": 1}, {"n": 2}], [{"n": 2}])
    again = await hub.subscribe(Reader("bob"), ["t"], first)
    assert [json.loads(text)["data"] for text in again.events] == [{"n": 2}]


async def test_a_topic_that_cannot_be_looked_at_says_so_and_is_tried_again(hub: LiveHub, source: Told) -> None:
    source.error = Unavailable("restarting")
    with pytest.raises(Unavailable):
        await hub.subscribe(Reader(), ["t"], None)
    source.error, ann = None, Reader()
    await hub.subscribe(ann, ["t"], None)
    source.error = Unavailable("restarting")
    await told(source)
    source.error = None
    await told(source, change(1))
    assert ann.data == [{"n": 1}]


async def test_a_topic_is_left_when_nobody_reads_it(source: Told) -> None:
    hub = LiveHub(lambda topic: source, interval_s=0.0, linger_s=0.0)
    ann = Reader()
    await hub.subscribe(ann, ["t"], None)
    await told(source, change(1))
    hub.unsubscribe(ann, ["t"])
    while hub._watches:  # noqa: ASYNC110 - nobody is told that a topic was left
        await asyncio.sleep(0)
    assert not (await hub.subscribe(Reader(), ["t"], ann.seen[-1]["id"])).resumed


async def test_a_job_is_told_with_the_steps_that_it_took_meanwhile(services: Services, jobs: FakeJobs) -> None:
    jobs.put("a")
    jobs.steps = [{"step": 1, "reward": 0.1}]
    source = JobSource("job:a", services)
    assert await source.look() == []
    assert source.snapshot("local")["job"]["status"] == "running"
    assert await source.look() == []
    jobs.steps += [{"step": 2, "reward": 0.2}, {"step": 3, "reward": 0.3}]
    jobs.views["a"] = jobs.views["a"] | {"metrics": {"reward": 0.3}, "config": {"long": True}}
    [found] = await source.look()
    assert (found.channel, found.data["steps"], "config" in found.data["job"]) == ("job:a", jobs.steps[1:], False)
    assert source.interval_s == 1.0
    jobs.views["a"] = jobs.views["a"] | {"status": "succeeded"}
    [found] = await source.look()
    assert (found.data["job"]["status"], found.data["steps"], source.interval_s) == ("succeeded", [], 5.0)
    del jobs.views["a"]
    assert [c.data for c in await source.look()] == [{"job": None, "steps": []}]
    assert await source.look() == []


class Alarms:
    def __init__(self) -> None:
        self.now: list[dict[str, Any]] = []

    async def alerts(self) -> list[dict[str, Any]]:
        return self.now


def alarm(name: str, state: str = "firing", **labels: str) -> dict[str, Any]:
    return {"name": name, "state": state, "labels": labels, "silenced": False}


async def test_alerts_are_told_when_they_change_and_those_about_a_job_to_its_owner(jobs: FakeJobs) -> None:
    jobs.put("a", owner="ann")
    alarms = Alarms()
    alarms.now = [alarm("Disk")]
    services: Any = SimpleNamespace(monitor=alarms, jobs=jobs)
    source = AlertsSource(services)
    assert await source.look() == []
    assert await source.look() == []
    alarms.now = [alarm("Disk"), alarm("KL", "pending", job_id="a"), alarm("Gone", job_id="nobody")]
    assert [(c.channel, c.data["alert"]["name"]) for c in await source.look()] == [
        ("alerts@ann", "KL"),
        ("alerts@", "Gone"),
    ]
    assert [a["name"] for a in source.snapshot("ann")["alerts"]] == ["Disk", "KL"]
    assert [a["name"] for a in source.snapshot("bob")["alerts"]] == ["Disk"]
    alarms.now = [alarm("KL", job_id="a")]
    found = [(c.channel, c.data["alert"]["name"], c.data["alert"]["state"]) for c in await source.look()]
    assert found == [("alerts@ann", "KL", "firing"), ("alerts", "Disk", "resolved"), ("alerts@", "Gone", "resolved")]


class Socket:
    """Takes `room` texts, then stands still until `go`."""

    def __init__(self, room: int) -> None:
        self.room, self.sent, self.closed = room, list[str](), 0
        self.go = asyncio.Event()

    async def send_text(self, text: str) -> None:
        if len(self.sent) >= self.room:
            await self.go.wait()
        self.sent.append(text)

    async def close(self, code: int, reason: str) -> None:
        self.closed = code


async def converse(socket: Any, said: int, *, room: int = 4, grace_s: float = 1000.0) -> tuple[SocketReader, Any]:
    """A handler that waits for its client for ever, and the reader that it made."""
    made: asyncio.Future[SocketReader] = asyncio.get_running_loop().create_future()

    async def handler() -> str:
        with SocketReader(socket, "ann", outbox=Outbox(max_waiting=room), grace_s=grace_s) as reader:
            made.set_result(reader)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if not reader.was_dropped:
                    raise
            return "dropped"

    task = asyncio.create_task(handler())
    reader = await made
    for number in range(said):
        reader.offer(str(number))
        await asyncio.sleep(0)
    return reader, task


async def test_texts_are_written_in_order() -> None:
    socket = Socket(room=1000)
    reader, task = await converse(socket, 100)
    await reader.finished()
    assert socket.sent == [str(n) for n in range(100)]
    task.cancel()


async def test_a_socket_that_breaks_in_an_unknown_way_is_nobody_elses_trouble(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Socket):
        async def send_text(self, text: str) -> None:
            raise ValueError(text)

    reader, task = await converse(Broken(room=1), 3)
    await reader.finished()
    assert (reader.was_dropped, caplog.text.count("could not be written to")) == (False, 3)
    task.cancel()


async def test_who_reads_again_in_time_is_told_that_he_was_dropped() -> None:
    socket = Socket(room=2)
    reader, task = await converse(socket, 20)
    assert reader.was_dropped
    socket.go.set()
    assert await task == "dropped"
    assert (socket.sent[:2], json.loads(socket.sent[-1])["type"], socket.closed) == (["0", "1"], "dropped", 1013)


async def test_who_never_reads_is_dropped_all_the_same() -> None:
    socket = Socket(room=2)
    _, task = await converse(socket, 20, grace_s=0.01)
    assert await task == "dropped"
    assert (socket.sent, socket.closed) == (["0", "1"], 0)


@contextmanager
def connected(app: FastAPI, **options: Any) -> Iterator[Any]:
    with TestClient(app) as client, client.websocket_connect("/ws/v2", **options) as socket:
        yield socket


def test_a_socket_subscribes_is_told_and_resumes(app: FastAPI, jobs: FakeJobs) -> None:
    jobs.put("a")
    with TestClient(app) as client:
        with client.websocket_connect("/ws/v2") as socket:
            socket.send_json({"type": "subscribe", "topics": ["job:a", "alerts"]})
            said = [socket.receive_json() for _ in range(3)]
            assert said[0]["data"] | {"last_event_id": 0} == {
                "topics": ["job:a", "alerts"],
                "resumed": False,
                "last_event_id": 0,
            }
            assert [(m["topic"], m["snapshot"]) for m in said[1:]] == [("job:a", True), ("alerts", True)]
            socket.send_json({"type": "unsubscribe", "topics": ["alerts"]})
            assert socket.receive_json() == {"type": "unsubscribed", "data": {"topics": ["job:a"]}}
        with client.websocket_connect("/ws/v2") as socket:
            socket.send_json(
                {"type": "subscribe", "topics": ["job:a"], "last_event_id": said[0]["data"]["last_event_id"]}
            )
            assert socket.receive_json()["data"]["resumed"] is True


@pytest.mark.parametrize(
    ("topics", "code"), [(["job:b"], "not_found"), (["weather"], "invalid_request"), ([], "invalid_request")]
)
def test_topics_of_others_and_unknown_ones_are_refused(
    app: FastAPI, jobs: FakeJobs, topics: list[str], code: str
) -> None:
    jobs.put("b", owner="somebody")
    with connected(app) as socket:
        socket.send_json({"type": "subscribe", "topics": topics})
        assert socket.receive_json()["data"]["code"] == code
        socket.send_json({"type": "subscribe", "topics": [f"job:{n}" for n in range(51)]})
        assert socket.receive_json()["data"]["code"] == "invalid_request"


def test_a_stream_of_another_tenants_job_is_refused(services: Services, jobs: FakeJobs) -> None:
    jobs.put("a")
    app = create_app(services)
    with TestClient(app) as client:
        assert client.get("/ws/v2/events", params={"topics": "job:b"}).status_code == 404
        assert client.get("/ws/v2/events", params={"topics": "weather"}).status_code == 422


@pytest.fixture
async def streamed(services: Services, jobs: FakeJobs) -> Any:
    """Reads the first `count` events of the stream for somebody with this last event id."""
    jobs.put("a")
    app = create_app(services)

    async def read(count: int, last_event_id: str | None = None) -> list[dict[str, str]]:
        sent: asyncio.Queue[bytes] = asyncio.Queue()
        headers = [(b"host", b"platform")] + ([(b"last-event-id", last_event_id.encode())] if last_event_id else [])
        scope = {"type": "http", "method": "GET", "path": "/ws/v2/events", "raw_path": b"/ws/v2/events"}
        scope |= {"query_string": b"topics=job:a", "headers": headers, "http_version": "1.1", "scheme": "http"}
        scope |= {"server": ("platform", 80), "client": ("127.0.0.1", 1), "root_path": ""}

        async def receive() -> dict[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                sent.put_nowait(message.get("body", b""))

        task = asyncio.create_task(app(scope, receive, send))  # type: ignore[arg-type]
        found: list[dict[str, str]] = []
        while len(found) < count:
            for block in (await sent.get()).decode().strip().split("\n\n"):
                lines = [line.partition(": ") for line in block.splitlines() if not line.startswith(":")]
                found += [{name: value for name, _, value in lines}] if lines else []
        task.cancel()
        await asyncio.wait({task})
        return found

    return read


async def test_a_stream_begins_with_snapshots_and_resumes(streamed: Any) -> None:
    resumed, snapshot = await streamed(2)
    assert (resumed["event"], json.loads(resumed["data"])["resumed"]) == ("resumed", False)
    assert (snapshot["event"], json.loads(snapshot["data"])["job"]["job_id"]) == ("job:a", "a")
    [again] = await streamed(1, snapshot["id"])
    assert json.loads(again["data"]) == {"resumed": True, "topics": ["job:a"]}


async def test_a_browser_gives_its_key_as_a_subprotocol(
    tmp_path: Path, clock: FakeClock, jobs: FakeJobs, speaker: FakeChat, services: Services
) -> None:
    from chatgrpo.gateway.api_keys import Keyring
    from chatgrpo.gateway.identity import LOCAL
    from chatgrpo.gateway.key_format import read_pepper
    from chatgrpo.gateway.roles import Role
    from chatgrpo.state.stores import open_store

    config: PlatformConfig = services.config
    store = await open_store(config.home / STATE_DB)

    async def opened() -> Any:
        return store

    minted = await Keyring(opened, pepper=read_pepper(config.home), clock=clock).create(
        LOCAL, name="page", role=Role.VIEWER, tenant="ann"
    )
    await store.close()
    jobs.put("a", owner="ann")
    jobs.put("b", owner="bob")
    app = create_app(services)
    with TestClient(app) as client:
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws/v2"):
            pass
        names = ["chatgrpo.v2", f"chatgrpo.key.{minted.key}"]
        with client.websocket_connect("/ws/v2", subprotocols=names) as socket:
            assert socket.accepted_subprotocol == "chatgrpo.v2"
            for job_id, kind in (("a", "subscribed"), ("b", "error")):
                socket.send_json({"type": "subscribe", "topics": [f"job:{job_id}"]})
                assert socket.receive_json()["type"] == kind
                if kind == "subscribed":
                    assert socket.receive_json()["data"]["job"]["job_id"] == "a"
        assert client.get("/api/v2/jobs").status_code == 401
