"""Random clients of shared conversations that note down what they asked and what they were told."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from chatgrpo.errors import PlatformError
from chatgrpo.messages import user
from chatgrpo.state.consistency import Consistency, SessionToken
from chatgrpo.state.conversations import Conversations
from tests.histories import Op

TENANT = "t"
NAMES = ("x", "y")

Note = Callable[[Op], None]
"""Called when an operation is asked for and, with its answer, when it is answered."""


async def run_client(
    client: str,
    replicas: Sequence[Conversations],
    *,
    level: Consistency,
    num_ops: int,
    seed: int,
    note: Note,
    names: Sequence[str] = NAMES,
) -> None:
    """Appends and reads until `num_ops` were answered, each through some replica, with one token as a browser would."""
    rng = random.Random(seed)
    token = SessionToken()
    num_answered = 0
    for number in itertools.count():
        if num_answered == num_ops:
            return
        conversations = rng.choice(replicas)
        kind = rng.choice(("append", "read"))
        op = Op(
            client=client,
            kind=kind,
            conversation=rng.choice(names),
            invoked=time.monotonic(),
            value=f"{client}.{number}" if kind == "append" else "",
        )
        note(op)
        try:
            if kind == "append":
                done = await conversations.append(
                    op.conversation, [user(op.value)], tenant=TENANT, append_id=op.value, level=level
                )
                answered = replace(op, returned=time.monotonic(), version=done.version)
                token = token.advance(done)
            else:
                window = await conversations.read_recent(
                    op.conversation, tenant=TENANT, max_messages=100_000, level=level, session=token
                )
                values = tuple(message.content for message in window.messages)
                answered = replace(op, returned=time.monotonic(), version=window.version, values=values)
                token = token.advance(window)
        except PlatformError as error:
            if not error.retryable:
                raise
            await asyncio.sleep(0.01)
            continue
        note(answered)
        num_answered += 1
        await asyncio.sleep(rng.choice((0, 0, 0.001)))


class History:
    """Operations by client and time of asking; an answer replaces the question."""

    def __init__(self) -> None:
        self._ops: dict[tuple[str, float], Op] = {}

    def note(self, op: Op) -> None:
        self._ops[(op.client, op.invoked)] = op

    @property
    def ops(self) -> list[Op]:
        return list(self._ops.values())

    @property
    def num_answered(self) -> int:
        return sum(op.is_answered for op in self._ops.values())


async def final_state(
    conversations: Conversations, names: Sequence[str] = NAMES, *, tenant: str = TENANT
) -> dict[str, list[str]]:
    found = {}
    for name in names:
        window = await conversations.read_recent(name, tenant=tenant, max_messages=100_000, level=Consistency.STRONG)
        found[name] = [message.content for message in window.messages]
    return found
