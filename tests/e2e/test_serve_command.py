"""`chatgrpo serve` as a process of its own: it comes up, answers, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from chatgrpo.client import Client
from chatgrpo.clock import SystemClock
from chatgrpo.config import PlatformConfig
from chatgrpo.gateway.gateway import Gateway
from chatgrpo.gateway.identity import LOCAL
from chatgrpo.gateway.roles import Role
from tests.contract import check_contract, listens_beyond_loopback

pytestmark = pytest.mark.e2e


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def session_of(pid: int) -> list[psutil.Process]:
    """Live processes in the session that `pid` leads: Ray's daemons stay in it, whatever their parent is."""

    def belongs(process: psutil.Process) -> bool:
        try:
            return os.getsid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False

    return [process for process in psutil.process_iter() if belongs(process)]


async def a_key(home: Path) -> str:
    gateway = Gateway.of(PlatformConfig(home=home), routes=(), clock=SystemClock())
    minted = await gateway.keyring.create(LOCAL, name="test", role=Role.ADMIN, tenant="local")
    await gateway.close()
    return minted.key


@pytest.mark.parametrize("ingress", ["serve", "haproxy"])
def test_serve_answers_and_leaves_no_process_behind(
    tmp_path: Path, models_dir: Path, ingress: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, port = tmp_path / "home", free_port()
    home.mkdir()
    (home / "models").symlink_to(models_dir)
    settings = {
        "CHATGRPO_HOME": str(home),
        "CHATGRPO_PORT": str(port),
        "CHATGRPO_DEFAULT_MODEL": "tiny",
        "CHATGRPO_INGRESS": ingress,
    }
    headers = {}
    if ingress == "haproxy":
        # Ports of its own: another HAProxy of this machine may have the usual ones.
        settings |= {
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        }
        key = asyncio.run(a_key(home))
        headers = {"authorization": f"Bearer {key}"}
        monkeypatch.setenv("CHATGRPO_API_KEY", key)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    platform = subprocess.Popen(
        [sys.executable, "-m", "chatgrpo.cli", "serve"],
        env=clean | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert platform.stdout is not None
    guard = threading.Timer(280, platform.kill)
    guard.start()
    try:
        said = ""
        for line in platform.stdout:
            said += line
            if "ready" in line:
                break
        assert f"ready at http://127.0.0.1:{port}" in said, said
        with Client(f"http://127.0.0.1:{port}") as client:
            assert client.chat("Hi", max_tokens=2)["turn_count"] == 1
        check_contract(f"http://127.0.0.1:{port}", headers)
        assert not listens_beyond_loopback(f"http://127.0.0.1:{port}")
        if headers:
            assert httpx.get(f"http://127.0.0.1:{port}/api/v2/jobs").status_code == 401
        assert (home / "ray_token").stat().st_mode & 0o777 == 0o600
        platform.send_signal(signal.SIGTERM)
        assert platform.wait(60) == 0, platform.stdout.read()
        _, alive = psutil.wait_procs(session_of(platform.pid), timeout=20)
        assert alive == []
    finally:
        guard.cancel()
        platform.stdout.close()
        for process in session_of(platform.pid):
            process.kill()
