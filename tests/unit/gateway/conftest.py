"""A gateway over a store in memory, and applications behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from chatgrpo.api.app import create_app
from chatgrpo.api.services import Services
from chatgrpo.config import PlatformConfig
from chatgrpo.gateway.api_keys import Keyring
from chatgrpo.gateway.config import GatewayConfig
from chatgrpo.gateway.gateway import Gateway
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.memory import MemoryStore
from chatgrpo.state.opening import open_conversations
from tests.fake_services import FakeChat, FakeJobs
from tests.fakes import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def keyring(store: MemoryStore, clock: FakeClock) -> Keyring:
    return keyring_over(store, clock)


def keyring_over(store: MemoryStore, clock: FakeClock) -> Keyring:
    async def opened() -> MemoryStore:
        return store

    return Keyring(opened, pepper=b"pepper", clock=clock)


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
    config = PlatformConfig(home=tmp_path, default_model="tiny", gateway=GatewayConfig(allowed_hosts=("platform",)))
    return Services(config=config, clock=clock, jobs=jobs, chat=speaker, conversations=conversations)


@pytest.fixture
async def app(services: Services) -> AsyncIterator[FastAPI]:
    made = create_app(services)
    yield made
    await made.state.gateway.close()


@pytest.fixture
def gateway(app: FastAPI) -> Gateway:
    found = app.state.gateway
    assert isinstance(found, Gateway)
    return found


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://platform") as client:
        yield client
