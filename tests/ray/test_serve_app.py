"""The whole service on a real local cluster, over HTTP: chat, jobs, sockets, and a trained model that is spoken to."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from chatgrpo.client import Client
from chatgrpo.config import PlatformConfig
from chatgrpo.errors import Conflict, InvalidRequest, NotFound
from chatgrpo.state.consistency import Consistency
from chatgrpo.training.export import replace_folder
from tests.gateway_process import HttpConversations
from tests.histories import linearizable, nothing_lost, settled
from tests.otlp_receiver import ancestors, otlp_receiver
from tests.state_clients import NAMES, History, final_state, run_client

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

API_REPLICA = "SERVE_REPLICA::api#Api#"
JOB = {
    "experiment_name": "two steps",
    "model": "tiny",
    "environment": {"type": "reasoning_gym", "dataset": "chain_sum", "size": 8},
    "prompts_per_step": 2,
    "num_generations": 2,
    "max_completion_length": 4,
    "max_steps": 2,
    "num_eval_prompts": 2,
    "lora": {"r": 4},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def traces() -> Iterator[tuple[str, list[Any]]]:
    """A collector of traces, as (address, what it got)."""
    with otlp_receiver() as found:
        yield found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "models").symlink_to(models_dir)
    return home


@pytest.fixture(scope="module")
def url(ray_cluster: str, home: Path, traces: tuple[str, list[Any]]) -> Iterator[str]:
    import ray
    from ray import serve

    import serve_app
    from actors.conversation_store import shard_names
    from actors.names import JOB_SCHEDULER, METRICS_HUB, NAMESPACE

    platform = PlatformConfig(
        home=home,
        port=free_port(),
        default_model="tiny",
        chat_threads=1,
        otlp_endpoint=traces[0],
    )
    serve_app.start(platform)
    yield f"http://127.0.0.1:{platform.port}"
    serve.shutdown()
    for name in [JOB_SCHEDULER, METRICS_HUB, *shard_names()]:
        ray.kill(ray.get_actor(name, namespace=NAMESPACE))


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    client = Client(url)
    yield client
    client.close()


def test_everything_is_healthy(client: Client) -> None:
    health = client.health()
    assert health["status"] == "healthy", health["components"]
    assert client.status()["default_model"] == "tiny"


def test_chat_whole_streamed_and_remembered(client: Client) -> None:
    first = client.chat("Hello", temperature=0.0, max_tokens=6)
    assert 1 <= first["metadata"]["tokens_generated"] <= 6
    again = client.chat("Hello", temperature=0.0, max_tokens=6)
    assert again["response"] == first["response"], "greedy decoding is repeatable"
    *pieces, done = client.stream("More", conversation_id=first["conversation_id"], max_tokens=6, seed=1)
    assert isinstance(done, dict)
    assert "".join(map(str, pieces)) == done["response"]
    assert done["turn_count"] == 2


def test_concurrent_chats_are_all_answered(url: str) -> None:
    replies: list[dict[str, Any]] = []

    def say(i: int) -> None:
        with Client(url) as client:
            replies.append(client.chat(f"Number {i}", max_tokens=8, seed=i))

    threads = [threading.Thread(target=say, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({reply["conversation_id"] for reply in replies}) == 12


def test_a_client_that_leaves_frees_its_place(client: Client, url: str) -> None:
    body = {"message": "Hello", "max_tokens": 1900, "stream": True, "temperature": 1.0}
    with httpx.stream("POST", f"{url}/api/v2/chat", json=body, timeout=60) as answer:
        next(answer.iter_lines())
    for _ in range(200):
        if client.status()["chat"]["active_requests"] == 0:
            return
    pytest.fail("the reply is still being written")


def test_wrong_requests_are_refused_with_reasons(client: Client, url: str) -> None:
    with pytest.raises(NotFound, match="model 'gpt-9' does not exist"):
        client.chat("Hi", model="gpt-9")
    with pytest.raises(InvalidRequest, match="context window of 2048"):
        client.chat("Hi", max_tokens=2048)
    with pytest.raises(NotFound):
        client.job("01ARZ3NDEKTSV4RRFFQ69G5FAV")
    with pytest.raises(NotFound):
        client.chat("Hi", conversation_id="nobody")
    with pytest.raises(InvalidRequest):
        client.train(JOB | {"model": "no-such-model-anywhere"})
    with pytest.raises(InvalidRequest):
        client.train(JOB | {"resources": {"gpus_per_worker": 64}})
    answer = httpx.get(f"{url}/api/v2/nothing")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_metrics_are_those_of_every_process_and_ray_has_them_too(client: Client, url: str) -> None:
    import ray

    client.chat("hello")
    agent = next(node for node in ray.nodes() if node["Alive"])["MetricsExportPort"]
    places = {
        f"{url}/metrics": ['tier="conversation"', 'tier="model"', "chatgrpo_chat_tokens_total"],
        f"http://127.0.0.1:{agent}/metrics": ["ray_chatgrpo_http_requests_total", "ray_chatgrpo_component_up"],
    }
    give_up_at = time.monotonic() + 60
    for place, wanted in places.items():
        while not all(name in (text := httpx.get(place, timeout=20).text) for name in wanted):
            assert time.monotonic() < give_up_at, (place, [name for name in wanted if name not in text])
            time.sleep(0.5)
    found = httpx.get(f"{url}/api/v2/advice", timeout=20).json()
    assert [advice["what"] for advice in found["advice"]] == ["chat_replicas", "training_workers"]


def test_an_operator_scales_the_chat_replicas_up_and_down(client: Client, url: str) -> None:
    from ray import serve

    def running() -> int:
        return serve.status().applications["api"].deployments["ChatModel"].replica_states.get("RUNNING", 0)

    # Half of one is bounded to one.
    for factor, wanted in ((2.0, 2), (0.5, 1), (0.5, 1)):
        answer = httpx.post(f"{url}/api/scale", json={"scale_factor": factor}, timeout=30)
        assert answer.status_code == 200, answer.text
        (scaled,) = answer.json()["scaled"]
        assert (scaled["deployment"], scaled["replicas"], scaled["max_replicas"]) == ("ChatModel", wanted, 8)
        give_up_at = time.monotonic() + 90
        while running() != wanted:
            assert time.monotonic() < give_up_at, serve.status()
            time.sleep(0.2)
        assert client.chat("still there?", max_tokens=4)["response"] is not None
    assert scaled["bounded"] is True


def test_the_live_socket_answers_with_the_apis_figures(url: str) -> None:
    address = url.replace("http", "ws") + "/ws/v2"
    with connect(address, open_timeout=30) as ws:
        for question, answer in (("ping", "pong"), ("metrics", "metrics_response"), ("health", "health_response")):
            ws.send(json.dumps({"type": question}))
            got = json.loads(ws.recv(timeout=30))
            assert got["type"] == answer
            if question == "metrics":
                assert got["data"]["api_metrics"]["total_requests"] > 0
        ws.send(json.dumps({"type": "job_status", "job_id": "nobody"}))
        assert json.loads(ws.recv(timeout=30))["data"]["code"] == "not_found"


async def test_killed_replicas_and_shards_lose_nothing_they_acknowledged(url: str) -> None:
    import ray

    from actors.conversation_store import shard_names
    from actors.names import NAMESPACE

    (name,) = (n for n in ray.util.list_named_actors(all_namespaces=True) if n["name"].startswith(API_REPLICA))
    replica = ray.get_actor(**name)
    shard = ray.get_actor(shard_names()[0], namespace=NAMESPACE)
    pids = [await actor.__ray_call__.remote(lambda _: os.getpid()) for actor in (replica, shard)]
    history = History()

    async def kill() -> None:
        for pid, num_answered in zip(pids, (30, 80), strict=True):
            while history.num_answered < num_answered:  # noqa: ASYNC110 (clients of this loop make the progress)
                await asyncio.sleep(0.005)
            os.kill(pid, signal.SIGKILL)

    async with httpx.AsyncClient(timeout=60) as http:
        # Serve's proxy answers 500 for a replica that dies while it works.
        conversations = HttpConversations(http, url, down=(500, 503))
        for each in NAMES:
            await conversations.create(each)
        async with asyncio.TaskGroup() as group:
            group.create_task(kill())
            for i in range(3):
                group.create_task(
                    run_client(
                        f"c{i}", [conversations], level=Consistency.STRONG, num_ops=40, seed=i, note=history.note
                    )
                )
        final = await final_state(conversations)
    assert nothing_lost(history.ops, final) is None
    assert linearizable(settled(history.ops, final)) is None


def first_lines(address: str) -> str:
    """What a stream of events begins with."""
    with httpx.stream("GET", address, timeout=60) as answer:
        return next(answer.iter_text())


def told(ws: Any, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """What the socket says until it says what is wanted, that included."""
    found: list[dict[str, Any]] = []
    while not found or not wanted(found[-1]):
        found.append(json.loads(ws.recv(timeout=120)))
    return found


def test_a_job_is_trained_followed_and_spoken_to(client: Client, url: str) -> None:
    job_id = client.train(JOB)["job_id"]
    with pytest.raises(Conflict, match=f"job {job_id} is "):
        client.chat("Hi", model=job_id)
    topic = f"job:{job_id}"
    with connect(url.replace("http", "ws") + "/ws/v2", open_timeout=30) as ws:
        ws.send(json.dumps({"type": "subscribe", "topics": [topic, "metrics"]}))
        begun, *snapshots = told(ws, lambda said: said.get("topic") == "metrics")
        assert (begun["type"], [said["snapshot"] for said in snapshots]) == ("subscribed", [True, True])
        events = told(ws, lambda said: said["topic"] == topic and said["data"]["job"]["status"] == "succeeded")
    of_job = [said for said in events if said["topic"] == topic]
    assert [line["step"] for said in of_job for line in said["data"]["steps"]] == [0, 1, 2]
    assert {said["topic"] for said in events} == {topic, "metrics"}
    numbers = [int(said["id"].rpartition("-")[2]) for said in events]
    assert numbers == sorted(set(numbers)), "one order, nothing twice"
    with connect(url.replace("http", "ws") + "/ws/v2", open_timeout=30) as ws:
        ws.send(json.dumps({"type": "subscribe", "topics": [topic], "last_event_id": begun["data"]["last_event_id"]}))
        assert json.loads(ws.recv(timeout=30))["data"]["resumed"] is True
        assert told(ws, lambda said: said["id"] == of_job[-1]["id"]) == of_job
    view = client.wait(job_id)
    assert view["status"] == "succeeded", client.logs(job_id)
    assert view["progress"]["progress_percent"] == 100
    assert "event: resumed" in first_lines(f"{url}/ws/v2/events?topics=alerts")
    assert client.logs(job_id)
    episodes = client.trajectories(job_id)
    assert len(episodes) == 8
    assert {episode["step"] for episode in episodes} == {1, 2}
    assert job_id in [model["id"] for model in client.models()]
    reply = client.chat("1 + 1", model=job_id, max_tokens=4)
    assert reply["metadata"]["model_version"].split("@")[0] == job_id


def test_a_new_version_of_a_model_takes_over_under_load(client: Client, url: str, home: Path) -> None:
    """After the job above, whose adapter is published three times more while clients speak to it."""
    export = next(home.glob("runs/*/export"))
    job_id, done = export.parent.name, threading.Event()
    versions: list[str] = []

    def speak(i: int) -> None:
        with Client(url) as mine:
            while not done.is_set():
                reply = mine.chat(f"Number {i}", model=job_id, max_tokens=8, seed=i)
                versions.append(reply["metadata"]["model_version"])

    with ThreadPoolExecutor(4) as pool:
        speakers = [pool.submit(speak, i) for i in range(4)]
        for i in range(3):
            before = client.chat("now", model=job_id, max_tokens=2)["metadata"]["model_version"]
            scratch = export.with_name(f"new-{i}")
            shutil.copytree(export, scratch)
            replace_folder(scratch, export)
            assert client.chat("now", model=job_id, max_tokens=2)["metadata"]["model_version"] != before
        done.set()
        for speaker in speakers:
            speaker.result()  # no request failed
    assert len(set(versions)) >= 3


def test_one_trace_leads_from_the_request_to_the_published_model(traces: tuple[str, list[Any]]) -> None:
    """After the job above: spans of the API, the scheduler, the run and its worker, each a process of its own."""
    give_up_at = time.monotonic() + 30
    last = {
        "POST /api/v2/train",
        "training.run",
        "job.launch",
        "POST /api/v2/chat",
        "model.generate",
        "conversation.append",
    }
    while not last <= (seen := {span.name for _, span in traces[1]}):
        assert time.monotonic() < give_up_at, seen
        time.sleep(0.2)
    publish = next(span for _, span in traces[1] if span.name == "training.publish")
    whole = [span for _, span in traces[1] if span.trace_id == publish.trace_id]
    up = ["training.worker", "training.run", "job.launch", "job.submit", "POST /api/v2/train"]
    assert ancestors(publish, whole) == ["training.publish", *up]
    steps = [span for span in whole if span.name == "training.step"]
    assert [ancestors(step, whole)[1:] for step in steps] == [up, up]
    parts = [ancestors(span, whole) for span in whole if span.name in {"training.rollout", "training.update"}]
    assert sorted(part[:2] for part in parts) == [
        ["training.rollout", "training.step"],
        ["training.rollout", "training.step"],
        ["training.update", "training.step"],
        ["training.update", "training.step"],
    ]
    everything = [span for _, span in traces[1]]
    chats = {tuple(ancestors(s, everything)) for s in everything if s.name.startswith(("model.", "conversation."))}
    assert ("model.generate", "POST /api/v2/chat") in chats
    assert ("conversation.append", "POST /api/v2/chat") in chats
