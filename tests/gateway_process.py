"""Gateways in processes of their own, made to be killed: the whole API over a real store, models left out.

Run as a program it is their nursery: it loads everything once and forks a gateway for each line `HOME PORT REDIS_URL`,
so that a killed one is replaced within a fraction of a second.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvicorn

from chatgrpo.api.app import create_app
from chatgrpo.api.services import Services
from chatgrpo.clock import SystemClock
from chatgrpo.config import PlatformConfig
from chatgrpo.errors import PlatformError, Unavailable
from chatgrpo.gateway.config import GatewayConfig
from chatgrpo.messages import Message
from chatgrpo.state.consistency import SessionToken
from chatgrpo.state.conversation_logs import FRESH
from chatgrpo.state.opening import open_platform_conversations
from tests.fake_services import FakeChat, FakeJobs

ROOT = Path(__file__).parents[1]


class Nursery:
    """Where gateways come from."""

    def __init__(self) -> None:
        env = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
        command = [sys.executable, str(Path(__file__))]
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._born: list[psutil.Process] = []

    def bear(self, home: Path, port: int, redis_url: str | None) -> psutil.Process:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{home} {port} {redis_url or '-'}\n")
        self._process.stdin.flush()
        self._born.append(psutil.Process(int(self._process.stdout.readline())))
        return self._born[-1]

    def end(self) -> None:
        for gateway in self._born:
            with suppress(psutil.NoSuchProcess):
                gateway.kill()
        self._process.communicate()


class GatewayProcess:
    """One gateway at a time on one port."""

    def __init__(self, nursery: Nursery, home: Path, port: int, redis_url: str | None) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._bear = lambda: nursery.bear(home, port, redis_url)
        self._process: psutil.Process | None = None

    async def start(self) -> None:
        """Returns once it answers."""
        self._process = self._bear()
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=self.url) as client:
            while True:
                with suppress(httpx.TransportError):
                    await client.get("/api/v2/conversations")
                    return
                await asyncio.sleep(0.005)

    def kill(self) -> None:
        """With SIGKILL; its port is free when this returns."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)


class Seen:
    """What an answer said of a conversation."""

    def __init__(self, conversation_id: str, answer: httpx.Response) -> None:
        self.conversation_id = conversation_id
        self.version = int(answer.json()["version"])
        self.seq = SessionToken.parse(answer.headers["x-session-token"]).seen[conversation_id]
        self.messages = [Message.from_dict(message) for message in answer.json().get("messages", ())]


class HttpConversations:
    """The part of `Conversations` that the clients of the histories use, over HTTP. Raises Unavailable when a gateway
    does not answer, or says with one of the statuses `down` that it cannot."""

    def __init__(self, client: httpx.AsyncClient, url: str, *, down: tuple[int, ...] = (503,)) -> None:
        self._client = client
        self._down = down
        self._url = f"{url}/api/v2/conversations"

    async def create(self, conversation_id: str) -> None:
        (await self._client.post(self._url, json={"conversation_id": conversation_id})).raise_for_status()

    async def append(self, conversation_id: str, messages: Any, *, append_id: str, level: str, **_: Any) -> Seen:
        body = {"messages": [message.to_dict() for message in messages], "append_id": append_id}
        return await self._ask("POST", conversation_id, level, json=body)

    async def read_recent(
        self, conversation_id: str, *, level: str, session: SessionToken = FRESH, max_messages: int, **_: Any
    ) -> Seen:
        headers = {"x-session-token": session.text}
        most = {"max_messages": min(max_messages, 10_000)}
        return await self._ask("GET", conversation_id, level, headers=headers, params=most)

    async def _ask(self, method: str, conversation_id: str, level: str, **more: Any) -> Seen:
        more["params"] = {"consistency": str(level), **more.get("params", {})}
        try:
            answer = await self._client.request(method, f"{self._url}/{conversation_id}/messages", **more)
        except httpx.TransportError as error:
            raise Unavailable(f"no answer: {error!r}") from error
        if answer.status_code in self._down:
            raise Unavailable(answer.text)
        if answer.is_error:
            raise PlatformError(f"{answer.status_code} {answer.text}")
        return Seen(conversation_id, answer)


async def serve(home: str, port: int, redis_url: str | None) -> None:
    config = PlatformConfig(home=Path(home), redis_url=redis_url, gateway=GatewayConfig(limits=()))
    conversations = await open_platform_conversations(config)
    services = Services(
        config=config, clock=SystemClock(), jobs=FakeJobs(), chat=FakeChat(), conversations=conversations
    )
    server = uvicorn.Server(uvicorn.Config(create_app(services), port=port, log_level="warning", access_log=False))
    await server.serve()
    await conversations.close()


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the killed ones
    for line in sys.stdin:
        home, port, redis_url = line.split()
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asyncio.run(serve(home, int(port), None if redis_url == "-" else redis_url))
            os._exit(0)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
