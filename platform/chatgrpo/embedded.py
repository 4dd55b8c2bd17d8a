"""Runs the whole platform as a child process and leaves nothing behind: for the demo, tests and scripts.

The child leads a session of its own, so that Ctrl-C reaches its parent alone, which then stops it in order.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from chatgrpo.client import Client
from chatgrpo.config import PlatformConfig
from chatgrpo.errors import PlatformError, Unavailable

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 180.0
# An orderly stop of Ray and Serve takes about five seconds; what is left after this is killed.
_STOP_TIMEOUT_S = 60.0


@contextmanager
def running_platform(
    platform: PlatformConfig, log: Path, *, on_wait: Callable[[float], None] = lambda _: None
) -> Iterator[Client]:
    """The platform on `platform.port` of this machine while the block runs. Its output goes to `log`.

    `on_wait(seconds)` is called while it starts. Raises Unavailable with the end of the log when it does not start;
    SIGTERM ends the block like Ctrl-C does."""
    log.parent.mkdir(parents=True, exist_ok=True)
    previous = signal.signal(signal.SIGTERM, _as_interrupt)
    with log.open("w", encoding="utf-8") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "chatgrpo.cli", "serve"],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=_environment(platform),
            start_new_session=True,
        )
        client = Client(f"http://{platform.host}:{platform.port}")
        try:
            _wait_until_healthy(child, client, log, on_wait)
            yield client
        finally:
            client.close()
            _stop(child)
            signal.signal(signal.SIGTERM, previous)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_port_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _environment(platform: PlatformConfig) -> dict[str, str]:
    """Ours, less what lets this process into another Ray cluster: the child makes one with a token of its own."""
    inherited = {k: v for k, v in os.environ.items() if k not in {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"}}
    return inherited | {
        "CHATGRPO_HOME": str(platform.home.expanduser().resolve()),
        "CHATGRPO_HOST": platform.host,
        "CHATGRPO_PORT": str(platform.port),
        "CHATGRPO_DEFAULT_MODEL": platform.default_model,
    }


def _wait_until_healthy(
    child: subprocess.Popen[bytes], client: Client, log: Path, on_wait: Callable[[float], None]
) -> None:
    started = time.monotonic()
    while child.poll() is None and time.monotonic() - started < _START_TIMEOUT_S:
        with suppress(PlatformError):
            if client.health()["status"] == "healthy":
                return
        on_wait(time.monotonic() - started)
        time.sleep(0.5)
    last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    how = f"ended with status {child.returncode}" if child.returncode is not None else "does not answer"
    raise Unavailable(f"the platform {how}; the end of {log}:\n{last}")


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Asks the child to stop and sees to it that all of its processes are gone."""
    family = _family(child.pid)
    with suppress(ProcessLookupError):
        child.terminate()
    try:
        child.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        logger.warning("the platform did not stop within %g s and is killed", _STOP_TIMEOUT_S)
    # psutil compares creation times: a process that got a dead one's number is not mistaken for it.
    left = [process for process in family if process.is_running()]
    _, left = psutil.wait_procs(left, timeout=5)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)
    child.wait()


def _family(pid: int) -> list[psutil.Process]:
    try:
        child = psutil.Process(pid)
        return [child, *child.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
