"""The API over fakes behind a real port, and a Chromium page that looks at it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvicorn
from playwright.async_api import Page, async_playwright

from chatgrpo.api.app import create_app
from chatgrpo.api.services import Services
from chatgrpo.clock import SystemClock
from chatgrpo.config import PlatformConfig
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.opening import open_conversations
from tests.fake_services import FakeChat, FakeJobs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: chromium)"))


@pytest.fixture
def jobs() -> FakeJobs:
    return FakeJobs()


@pytest.fixture
def speaker() -> FakeChat:
    return FakeChat()


@pytest.fixture
async def conversations() -> AsyncIterator[Conversations]:
    opened = await open_conversations("memory:", clock=SystemClock())
    yield opened
    await opened.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where the platform keeps its things."""
    return tmp_path


@pytest.fixture
async def url(home: Path, jobs: FakeJobs, speaker: FakeChat, conversations: Conversations) -> AsyncIterator[str]:
    """Where the API listens."""
    config = PlatformConfig(home=home, default_model="tiny")
    services = Services(config=config, clock=SystemClock(), jobs=jobs, chat=speaker, conversations=conversations)
    server = uvicorn.Server(uvicorn.Config(create_app(services), port=0, log_level="warning", ws="websockets-sansio"))
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn tells in no other way
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await running


@pytest.fixture
async def page(url: str) -> AsyncIterator[Page]:
    """A page of a browser that has no other network; a script error or an opened dialog fails the test."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = await browser.new_context(base_url=url)
        context.set_default_timeout(10_000)
        page = await context.new_page()
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda r: None if r.url.startswith(url) else wrong.append(f"foreign request {r.url}"))
        yield page
        await browser.close()
        assert wrong == []
