"""`kill -9` of processes and of Redis, at any moment, torn files included: no acknowledged write is lost, and what
clients saw keeps the promise of its level."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chatgrpo.errors import Conflict, Unavailable
from chatgrpo.messages import user
from chatgrpo.state.consistency import Consistency, SessionToken
from chatgrpo.state.opening import open_conversations
from tests.histories import Op, causal_order, linearizable, nothing_lost, session_order, settled
from tests.redis_server import RedisServer
from tests.state_clients import NAMES, TENANT, final_state

ROOT = Path(__file__).parents[3]
NUM_OPS = 60
TORN = b"*3\r\n$7\r\nEVALSHA\r\n$40\r\n0123"


class Workers:
    """Processes that write one log each."""

    def __init__(self, address: str, level: Consistency, folder: Path) -> None:
        self._address = address
        self._level = level
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        number = len(self._started)
        log = self._folder / f"{number}.log"
        command = [sys.executable, str(ROOT / "tests/state_worker.py"), self._address, self._level, str(2 * number)]
        env = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
        process = subprocess.Popen([*command, str(NUM_OPS), str(log)], env=env)
        self._started.append(process)
        return process

    async def until_answered(self, count: int) -> None:
        while sum(op.is_answered for op in self.ops()) < count:  # noqa: ASYNC110 (other processes write the logs)
            await asyncio.sleep(0.02)

    async def until_done(self) -> list[int]:
        return [await asyncio.to_thread(process.wait) for process in self._started]

    def ops(self) -> list[Op]:
        found: dict[tuple[str, float], Op] = {}
        for log in sorted(self._folder.glob("*.log")):
            for line in log.read_bytes().split(b"\n")[:-1]:
                fields = json.loads(line)
                op = Op(**{**fields, "values": tuple(fields["values"])})
                found[(op.client, op.invoked)] = op
        return list(found.values())

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Callable[[str, Consistency], Workers]]:
    made: list[Workers] = []

    def make(address: str, level: Consistency) -> Workers:
        made.append(Workers(address, level, tmp_path))
        return made[-1]

    yield make
    for each in made:
        each.end()


async def begin(address: str) -> None:
    conversations = await open_conversations(address, is_audited=False)
    for name in NAMES:
        await conversations.create(name, tenant=TENANT)
    await conversations.close()


async def check(address: str, level: Consistency, ops: list[Op]) -> None:
    conversations = await open_conversations(address, is_audited=False)
    final = await final_state(conversations)
    await conversations.close()
    assert nothing_lost(ops, final) is None
    assert session_order(ops) is None
    assert causal_order(ops) is None
    if level is Consistency.STRONG:
        assert linearizable(settled(ops, final)) is None
    assert sum(op.is_answered and op.kind == "append" for op in ops) > NUM_OPS


@pytest.mark.parametrize("level", [Consistency.STRONG, Consistency.CAUSAL])
async def test_killed_processes_on_sqlite(
    tmp_path: Path, workers: Callable[[str, Consistency], Workers], level: Consistency
) -> None:
    address = str(tmp_path / "state.db")
    await begin(address)
    group = workers(address, level)
    first, second, _ = group.start(), group.start(), group.start()
    await group.until_answered(40)
    first.send_signal(signal.SIGKILL)
    group.start()
    await group.until_answered(100)
    second.send_signal(signal.SIGKILL)
    codes = await group.until_done()
    assert codes[2:] == [0, 0]
    await check(address, level, group.ops())


@pytest.mark.parametrize("level", [Consistency.STRONG, Consistency.CAUSAL])
async def test_killed_processes_and_killed_redis(
    redis_server: RedisServer, workers: Callable[[str, Consistency], Workers], level: Consistency
) -> None:
    await begin(redis_server.url)
    group = workers(redis_server.url, level)
    first, _ = group.start(), group.start()
    await group.until_answered(30)
    redis_server.kill()
    with redis_server.append_only_file.open("ab") as file:
        file.write(TORN)
    redis_server.start()
    first.send_signal(signal.SIGKILL)
    group.start()
    await group.until_answered(100)
    redis_server.kill()
    redis_server.start()
    codes = await group.until_done()
    assert codes[1:] == [0, 0]
    await check(redis_server.url, level, group.ops())


async def test_a_redis_that_lost_acknowledged_writes_is_noticed_by_the_token(redis_server: RedisServer) -> None:
    conversations = await open_conversations(redis_server.url, is_audited=False)
    await conversations.create("x", tenant=TENANT)
    token = SessionToken()
    for number in range(10):
        token = token.advance(await conversations.append("x", [user(str(number))], tenant=TENANT))
    redis_server.kill()
    log = redis_server.append_only_file
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size - 500)
    redis_server.start()
    fresh = await open_conversations(redis_server.url, is_audited=False)
    with pytest.raises(Conflict, match="lost writes that this session has seen") as caught:
        await fresh.read_recent("x", tenant=TENANT, session=token)
    window = await fresh.read_recent("x", tenant=TENANT)
    kept = [message.content for message in window.messages]
    assert kept == [str(number) for number in range(len(kept))]
    assert 0 < len(kept) < 10
    assert caught.value.current_version == len(kept)
    await conversations.close()
    await fresh.close()


async def test_redis_gone_means_a_clear_error_and_old_reads_where_they_are_allowed(redis_server: RedisServer) -> None:
    conversations = await open_conversations(redis_server.url, is_audited=False)
    await conversations.create("x", tenant=TENANT)
    await conversations.append("x", [user("1")], tenant=TENANT)
    redis_server.kill()
    for act in (
        conversations.append("x", [user("2")], tenant=TENANT),
        conversations.read_recent("x", tenant=TENANT, level=Consistency.STRONG),
        conversations.list(tenant=TENANT),
        conversations.ping(),
    ):
        with pytest.raises(Unavailable, match="Redis"):
            await act
    window = await conversations.read_recent("x", tenant=TENANT, level=Consistency.EVENTUAL)
    assert [message.content for message in window.messages] == ["1"]
    # An eventual write is taken, waits for the server, and arrives when it is back.
    await conversations.append("x", [user("3")], tenant=TENANT, level=Consistency.EVENTUAL)
    redis_server.start()
    await conversations.close()
    again = await open_conversations(redis_server.url, is_audited=False)
    window = await again.read_recent("x", tenant=TENANT)
    assert [message.content for message in window.messages] == ["1", "3"]
    await again.close()


async def test_a_stuck_redis_times_out(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatgrpo.state.redis_connection.ANSWER_TIMEOUT_S", 0.5)
    conversations = await open_conversations(redis_server.url, is_audited=False)
    await conversations.create("x", tenant=TENANT)
    redis_server.pause()
    with pytest.raises(Unavailable):
        await conversations.append("x", [user("1")], tenant=TENANT, append_id="once")
    redis_server.resume()
    # Whether the first attempt arrived or not, the retry with its id makes it exactly one.
    done = await conversations.append("x", [user("1")], tenant=TENANT, append_id="once")
    assert done.version == 1
    assert (await final_state(conversations, ["x"]))["x"] == ["1"]
    await conversations.close()


@pytest.mark.parametrize(
    "settings", [("--appendonly", "no"), ("--appendonly", "yes", "--appendfsync", "everysec")], ids=["none", "everysec"]
)
async def test_what_the_server_syncs_decides_what_is_durable(tmp_path: Path, settings: tuple[str, ...]) -> None:
    server = RedisServer(tmp_path, *settings, "--save", "").start()
    try:
        if "no" in settings:
            with pytest.raises(Exception, match="appendonly yes"):
                await open_conversations(server.url)
            return
        conversations = await open_conversations(server.url, is_audited=False)
        await conversations.create("x", tenant=TENANT)
        await conversations.append("x", [user("1")], tenant=TENANT)
        server.kill()
        server.start()
        assert (await final_state(conversations, ["x"]))["x"] == ["1"]
        await conversations.close()
    finally:
        server.kill()
