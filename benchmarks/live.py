"""Live updates to ten thousand open sockets, and what metrics and traces cost a request.

The sockets and the server are one process each on this machine, over loopback. The overhead is the processor time of
the API's process for a chat request that its model answers at once, which no real model does: with all metrics, their
reports and a span exported for every request, against none of it, in turns within one process. It is counted by the
scheduler in nanoseconds, over all threads, and the median over the rounds is told; the latency that a client sees is
compared in the same rounds, and between a collector that takes the spans and one that is down.
"""

from __future__ import annotations

import http.client
import json
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import figure, write_report
from chatgrpo.embedded import free_port
from tests.otlp_receiver import otlp_receiver

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
NUM_CLIENTS = 10_000
LISTEN_S = 20.0
# File descriptors that a process has besides its sockets.
OTHER_FILES = 200
ROUNDS = 20
REQUESTS_A_ROUND = 250
# Spans are sent every two seconds: what is sent after the last answer belongs to the requests before it.
TAIL_S = 2.2


@contextmanager
def server(mode: str, home: Path, otlp: str | None = None) -> Iterator[tuple[int, psutil.Process]]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.live_servers", mode, str(port), str(home), *([otlp] if otlp else [])]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        give_up_at = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > give_up_at:
                    raise
                time.sleep(0.1)
        yield port, psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def sockets(home: Path) -> dict[str, Any]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    number = min(NUM_CLIENTS, hard - OTHER_FILES)
    with server("live", home) as (port, process):
        before = process.memory_info().rss
        command = [sys.executable, "-m", "benchmarks.live_clients", str(port), str(number), str(LISTEN_S)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as clients:
            assert clients.stdout is not None
            held = json.loads(clients.stdout.readline())["held"]
            grown = process.memory_info().rss - before
            heard = json.loads(clients.stdout.readline())
    events = heard["num_events"]
    return {
        "clients": figure(held, "sockets", at_least=NUM_CLIENTS, file_descriptor_limit=hard),
        "dropped": figure(heard["lost"] + number - held, "sockets", at_most=0),
        "fanout_p50_s": figure(heard["p50_s"], "s"),
        "fanout_p99_s": figure(heard["p99_s"], "s", at_most=1, num_events=events, slowest_s=round(heard["max_s"], 4)),
        "kib_per_connection": figure(grown / 1024 / max(1, held), "KiB", at_most=60),
    }


def chat(port: int, number: int) -> list[float]:
    """`number` requests over four connections; every answer must be 200. Seconds that each took."""
    wrong: list[object] = []
    took_s: list[float] = []

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        body, headers = json.dumps({"message": "2 + 2?", "max_tokens": 8}), {"Content-Type": "application/json"}
        for _ in range(number // 4):
            began = time.perf_counter()
            connection.request("POST", "/api/v2/chat", body, headers)
            answer = connection.getresponse()
            text = answer.read()
            took_s.append(time.perf_counter() - began)
            if answer.status != 200:
                wrong.append((answer.status, text[:300]))
                return
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise SystemExit(f"a chat request failed: {wrong[0]}")
    return took_s


def cpu_s(process: psutil.Process) -> float:
    """Seconds that all its threads have run."""
    spent = (task.read_text() for task in Path(f"/proc/{process.pid}/task").glob("*/schedstat"))
    return sum(int(line.split()[0]) for line in spent) / 1e9


def cost_of_a_request(port: int, process: psutil.Process) -> tuple[float, float]:
    """(processor seconds, median seconds until the answer) of a request."""
    before = cpu_s(process)
    took_s = chat(port, REQUESTS_A_ROUND)
    time.sleep(TAIL_S)
    return (cpu_s(process) - before) / REQUESTS_A_ROUND, statistics.median(took_s)


def switch(port: int, *, is_on: bool) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", f"/telemetry?{'on' if is_on else 'off'}")
    assert connection.getresponse().status == 204
    connection.close()


def overhead(folder: Path) -> dict[str, Any]:
    """The same requests in turns with and without telemetry."""
    with otlp_receiver() as (address, received), server("switched", folder / "switched", address) as (port, process):
        costs = in_turns(lambda is_on: switch(port, is_on=is_on), lambda _: cost_of_a_request(port, process), ROUNDS)
        spans = len(received)
    (with_cpu, with_wall), (without_cpu, without_wall) = (zip(*costs[is_on], strict=True) for is_on in (True, False))
    return {
        "telemetry_overhead": compared(with_cpu, without_cpu, at_most=0.05, spans_received=spans),
        "telemetry_latency": compared(with_wall, without_wall),
    }


def in_turns(prepare: Callable[[bool], None], measure: Callable[[bool], T], rounds: int) -> dict[bool, list[T]]:
    """There and back, so that whatever slows the machine for a while slows both as often. The first turn of each is
    for warming up."""
    found: dict[bool, list[T]] = {True: [], False: []}
    for number in range(rounds + 1):
        for which in (True, False) if number % 2 else (False, True):
            prepare(which)
            cost = measure(which)
            if number:
                found[which].append(cost)
    return found


def compared(with_: Sequence[float], without: Sequence[float], **more: Any) -> dict[str, Any]:
    """By how much the one is above the other in the median round."""
    pairs = [a / b - 1 for a, b in zip(with_, without, strict=True)]
    return figure(
        statistics.median(pairs),
        "share",
        with_ms=round(1000 * statistics.median(with_), 4),
        without_ms=round(1000 * statistics.median(without), 4),
        quartiles=[round(q, 4) for q in statistics.quantiles(pairs, n=4)],
        **more,
    )


def collector_down(folder: Path) -> dict[str, Any]:
    """How long an answer takes while the collector of traces is down, against one that takes them."""
    with (
        otlp_receiver() as (address, _),
        server("with", folder / "up", address) as up,
        server("with", folder / "down", f"http://127.0.0.1:{free_port()}") as down,
    ):
        took = in_turns(
            lambda _: None,
            lambda is_down: statistics.median(chat((down if is_down else up)[0], REQUESTS_A_ROUND)),
            ROUNDS,
        )
    return {
        "latency_with_collector_down": figure(
            statistics.median(a / b for a, b in zip(took[True], took[False], strict=True)),
            "times",
            at_most=1.05,
            down_ms=round(1000 * statistics.median(took[True]), 4),
            up_ms=round(1000 * statistics.median(took[False]), 4),
        )
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_report("live", {**sockets(home / "live"), **overhead(home), **collector_down(home)})


if __name__ == "__main__":
    main()
