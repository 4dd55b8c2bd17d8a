"""A load generator for one address of this machine: keep-alive connections that each send the same request again as
soon as its answer is complete. A process of its own, so that it shares no interpreter lock with what it measures.

    python -m benchmarks.load '{"port": 8000, "path": "/x", "body": {}, "connections": 32, "seconds": 5}'
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import uvloop


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`abort_every`: every so many requests the connection is dropped after the first bytes of the answer (0: never).
    Ends after `seconds`, or after `num_requests` if that comes first."""

    port: int
    path: str
    body: Mapping[str, Any]
    connections: int = 1
    seconds: float = 5.0
    warmup_s: float = 1.0
    num_requests: int = 0
    abort_every: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)

    def request(self) -> bytes:
        body = json.dumps(self.body).encode()
        fields = {
            "host": f"127.0.0.1:{self.port}",
            "content-type": "application/json",
            "content-length": str(len(body)),
            **self.headers,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {self.path} HTTP/1.1\r\n{head}\r\n".encode() + body


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Latencies in milliseconds, of answers with status 200 after the warm-up."""

    rps: float
    p50_ms: float
    p99_ms: float
    num_ok: int
    num_failed: int
    num_aborted: int


class Tally:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.request = plan.request()
        self.begins = time.perf_counter() + plan.warmup_s
        self.ends = self.begins + plan.seconds
        self.latencies: list[float] = []
        self.num_sent = self.num_failed = self.num_aborted = 0
        self.first_failure = b""

    @property
    def is_over(self) -> bool:
        limit = self.plan.num_requests
        return time.perf_counter() >= self.ends or bool(limit and self.num_sent >= limit)

    def measured(self) -> Measured:
        found = sorted(self.latencies)
        took = min(self.ends, time.perf_counter()) - self.begins
        at = [found[min(len(found) - 1, int(share * len(found)))] * 1e3 if found else 0.0 for share in (0.5, 0.99)]
        return Measured(
            rps=len(found) / took,
            p50_ms=at[0],
            p99_ms=at[1],
            num_ok=len(found),
            num_failed=self.num_failed,
            num_aborted=self.num_aborted,
        )


class Connection(asyncio.Protocol):
    """One request at a time; `closed` is set when the connection is gone."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.closed = asyncio.get_running_loop().create_future()
        self._buffer = b""
        self._began = 0.0
        self._number = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._send()

    def connection_lost(self, _: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        every = self.tally.plan.abort_every
        if every and self._number % every == 0:
            self.tally.num_aborted += 1
            self.transport.abort()
            return
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found or not _is_complete(head, body):
            return
        self._count(head, body)
        self._buffer = b""
        if self.tally.is_over:
            self.transport.close()
        else:
            self._send()

    def _send(self) -> None:
        self.tally.num_sent += 1
        self._number = self.tally.num_sent
        self._began = time.perf_counter()
        self.transport.write(self.tally.request)

    def _count(self, head: bytes, body: bytes) -> None:
        now = time.perf_counter()
        if not head.startswith(b"HTTP/1.1 200"):
            self.tally.num_failed += 1
            self.tally.first_failure = self.tally.first_failure or head + b"\r\n\r\n" + body
        elif self._began >= self.tally.begins:
            self.tally.latencies.append(now - self._began)


def _is_complete(head: bytes, body: bytes) -> bool:
    lower = head.lower()
    at = lower.find(b"content-length:")
    if at >= 0:
        return len(body) >= int(lower[at + 15 :].partition(b"\r\n")[0])
    return body.endswith(b"0\r\n\r\n")


async def run(plan: Plan) -> Measured:
    tally = Tally(plan)
    loop = asyncio.get_running_loop()

    async def keep_asking() -> None:
        while not tally.is_over:
            try:
                _, connection = await loop.create_connection(lambda: Connection(tally), "127.0.0.1", plan.port)
            except OSError:
                tally.num_failed += 1
                await asyncio.sleep(0.05)
                continue
            await connection.closed

    async with asyncio.timeout(plan.warmup_s + plan.seconds + 60):
        await asyncio.gather(*(keep_asking() for _ in range(plan.connections)))
    if tally.num_failed:
        print(f"{tally.num_failed} failed, first: {tally.first_failure[:400]!r}", file=sys.stderr)
    return tally.measured()


def measure(plan: Plan) -> Measured:
    """Runs the plan in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", json.dumps(asdict(plan))],
        stdout=subprocess.PIPE,
        timeout=plan.warmup_s + plan.seconds + 120,
        check=True,
    )
    return Measured(**json.loads(done.stdout))


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(run(Plan(**json.loads(sys.argv[1])))))))
