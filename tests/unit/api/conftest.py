"""The API over fakes and a real in-memory conversation store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from chatgrpo.api.app import create_app
from chatgrpo.api.services import Services
from chatgrpo.config import PlatformConfig
from chatgrpo.gateway.config import GatewayConfig
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.opening import open_conversations
from tests.fake_services import FakeChat, FakeJobs
from tests.fakes import FakeClock

# What the tests' clients call the platform.
HOSTS = GatewayConfig(allowed_hosts=("platform", "testserver"))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def jobs() -> FakeJobs:
    return FakeJobs()


@pytest.fixture
def speaker() -> FakeChat:
    return FakeChat()


@pytest.fixture
async def conversations(clock: FakeClock) -> AsyncIterator[Conversations]:
    opened = await open_conversations("memory:", clock=clock)
    yield opened
    await opened.close()


@pytest.fixture
def services(
    tmp_path: Path, clock: FakeClock, jobs: FakeJobs, speaker: FakeChat, conversations: Conversations
) -> Services:
    config = PlatformConfig(home=tmp_path, default_model="tiny", max_body_bytes=20_000, gateway=HOSTS)
    return Services(config=config, clock=clock, jobs=jobs, chat=speaker, conversations=conversations)


@pytest.fixture
def app(services: Services) -> FastAPI:
    return create_app(services)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://platform") as client:
        yield client
