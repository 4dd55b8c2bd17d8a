"""Very many WebSockets in one process, as bare protocols: python -m benchmarks.live_clients PORT NUMBER SECONDS.

Each subscribes to the job `bench`. Prints one line of JSON once all hold, listens for the seconds, and prints another:
how late events were (the view of the job says when it was looked at), and how many sockets were lost.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from typing import Any

import uvloop

SUBSCRIBE = json.dumps({"type": "subscribe", "topics": ["job:bench"]}).encode()
# More at once and the server's backlog is what is measured.
AT_ONCE = 200


def masked(text: bytes) -> bytes:
    """A frame of a client; a mask of zeros changes nothing."""
    assert len(text) < 126
    return bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text


class Socket(asyncio.Protocol):
    def __init__(self, port: int, late_s: list[float]) -> None:
        self._late_s = late_s
        self._buffer = b""
        self._is_open = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_lost = False
        self._request = (
            f"GET /ws/v2 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self._request)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        if not self.ready.done():
            self.ready.set_exception(error or ConnectionError("closed"))

    def data_received(self, data: bytes) -> None:
        now = time.time()
        self._buffer += data
        if not self._is_open:
            head, found, self._buffer = self._buffer.partition(b"\r\n\r\n")
            if not found:
                self._buffer = head
                return
            if b" 101 " not in head:
                self.transport.close()
                return
            self._is_open = True
            self.transport.write(masked(SUBSCRIBE))
        while (frame := self._take()) is not None:
            self._heard(*frame, now)

    def _take(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        length, start = buffer[1], 2
        if length == 126:
            length, start = int.from_bytes(buffer[2:4], "big"), 4
        if len(buffer) < start or len(buffer) < start + length:
            return None
        self._buffer = buffer[start + length :]
        return buffer[0] & 0x0F, buffer[start : start + length]

    def _heard(self, opcode: int, payload: bytes, now: float) -> None:
        if opcode == 0x9:
            self.transport.write(bytes([0x8A, 0x80 | len(payload), 0, 0, 0, 0]) + payload)
        elif opcode == 0x1 and b'"snapshot": false' in payload:
            at = payload.rindex(b'"at": ') + 6
            self._late_s.append(now - float(payload[at : payload.index(b"}", at)]))
        elif opcode == 0x1 and b'"snapshot": true' in payload and not self.ready.done():
            self.ready.set_result(None)


async def main(port: int, number: int, seconds: float) -> None:
    loop, late_s = asyncio.get_running_loop(), list[float]()
    room, sockets = asyncio.Semaphore(AT_ONCE), list[Socket]()

    async def connect() -> None:
        async with room:
            try:
                _, socket = await loop.create_connection(lambda: Socket(port, late_s), "127.0.0.1", port)
                await socket.ready
            except OSError:
                return
        sockets.append(socket)

    await asyncio.gather(*(connect() for _ in range(number)))
    print(json.dumps({"held": sum(not socket.is_lost for socket in sockets)}), flush=True)
    late_s.clear()
    await asyncio.sleep(seconds)
    found = sorted(late_s)
    at = {f"p{round(100 * share)}_s": found[int(share * (len(found) - 1))] for share in (0.5, 0.99)} if found else {}
    lost = sum(socket.is_lost for socket in sockets)
    print(json.dumps({"num_events": len(found), "lost": lost, "max_s": found[-1] if found else None, **at}), flush=True)
    # Ten thousand good-byes would only take time.
    os._exit(0)


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
