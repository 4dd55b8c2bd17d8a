"""Shared fixtures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from chatgrpo.inference.loading import LoadedModel

# How long an example takes says more about the machine than about the code. CI draws the same examples every time.
settings.register_profile("chatgrpo", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("chatgrpo")


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model cache for this test process."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def tiny(models_dir: Path) -> LoadedModel:
    """A fresh tiny model for one test, which may change its weights."""
    from chatgrpo.inference.loading import load

    return load("tiny", models_dir=models_dir)


@pytest.fixture
def dense(models_dir: Path, tiny: LoadedModel) -> Any:
    """The same tiny model as plain transformers runs it: the reference for every path of ours."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(models_dir / "tiny", attn_implementation="eager").eval()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server for the whole test process; tests keep apart by prefixes of their own."""
    from tests.redis_server import RedisServer, shared_url

    url = shared_url()
    if url is not None:
        yield url
        return
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server.url
    server.kill()
