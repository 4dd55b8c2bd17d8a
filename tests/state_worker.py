"""A process with clients of its own, made to be killed: `state_worker.py ADDRESS LEVEL FIRST_CLIENT NUM_OPS LOG`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict

from chatgrpo.errors import Unavailable
from chatgrpo.state.consistency import Consistency
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.opening import open_conversations
from tests.histories import Op
from tests.state_clients import run_client

GIVE_UP_S = 100.0


async def opened(address: str) -> Conversations:
    """Once the store answers: it may be killed while this process starts."""
    async with asyncio.timeout(GIVE_UP_S):
        while True:
            with suppress(Unavailable):
                return await open_conversations(address, is_audited=False)
            await asyncio.sleep(0.02)


async def main(address: str, level: str, first: int, num_ops: int, log: str) -> None:
    conversations = await opened(address)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(op: Op) -> None:
        os.write(file, json.dumps(asdict(op)).encode() + b"\n")

    # Whoever started this process may be gone, and the store with it.
    async with asyncio.timeout(GIVE_UP_S):
        await asyncio.gather(
            *(
                run_client(
                    f"c{client}", [conversations], level=Consistency(level), num_ops=num_ops, seed=client, note=note
                )
                for client in (first, first + 1)
            )
        )
    await conversations.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]))
