"""The background thread in which chat's engines work, side by side.

Every round advances each engine that has requests by one step for all of them. A failure ends the replies of its engine
alone.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from chatgrpo.errors import PlatformError, Unavailable
from chatgrpo.inference.engine import Engine, GenerationRequest, TokenEvent

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Reply:
    """Where the thread leaves what it sampled for one request; an error ends the reply."""

    events: asyncio.Queue[list[TokenEvent] | Exception] = field(default_factory=asyncio.Queue)


@dataclass(frozen=True, slots=True)
class Add:
    """A request for an engine. `loop`: in whose thread `reply` is read."""

    engine: Engine
    request: GenerationRequest
    reply: Reply
    loop: asyncio.AbstractEventLoop


@dataclass(frozen=True, slots=True)
class Cancel:
    engine: Engine
    request_id: str


class EngineThread:
    """Owns the engines: adds, cancels and steps them, and hands events to the event loop."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[Add | Cancel | Callable[[], None] | None] = queue.SimpleQueue()
        self._replies: dict[int, dict[str, Add]] = {}
        self._engines: dict[int, Engine] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="chat-engines", daemon=True)
        self._thread.start()

    def add(self, request: Add) -> None:
        if self._closed:
            raise Unavailable("this replica is shutting down; try again")
        self._inbox.put(request)

    def cancel(self, request: Cancel) -> None:
        self._inbox.put(request)

    def call(self, act: Callable[[], None] | None) -> None:
        """Between two rounds, after everything that was asked before."""
        if act is not None:
            self._inbox.put(act)

    def close(self) -> None:
        self._closed = True
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        while self._take_inbox():
            for key, engine in list(self._engines.items()):
                self._step(key, engine)
        for waiting in self._replies.values():
            for add in waiting.values():
                _deliver(add, Unavailable("this replica is shutting down; try again"))

    def _take_inbox(self) -> bool:
        """Waits only when no engine has work. False when the thread is to end."""
        while True:
            try:
                item = self._inbox.get(block=not self._engines)
            except queue.Empty:
                return True
            if item is None:
                return False
            if isinstance(item, Add):
                self._admit(item)
            elif isinstance(item, Cancel):
                self._forget(item)
            else:
                item()

    def _admit(self, add: Add) -> None:
        try:
            add.engine.add(add.request)
        except PlatformError as error:
            _deliver(add, error)
            return
        key = id(add.engine)
        self._engines[key] = add.engine
        self._replies.setdefault(key, {})[add.request.request_id] = add

    def _forget(self, cancel: Cancel) -> None:
        if self._replies.get(id(cancel.engine), {}).pop(cancel.request_id, None) is not None:
            cancel.engine.cancel(cancel.request_id)
        self._rest_if_idle(id(cancel.engine))

    def _step(self, key: int, engine: Engine) -> None:
        waiting = self._replies.get(key, {})
        try:
            events = engine.step()
        except Exception:
            # Whatever breaks in a model (out of memory, a bad kernel) must end its replies, not the other models'.
            logger.exception("a chat engine failed num_requests=%d", len(waiting))
            self._fail(key, engine)
            return
        by_request: dict[str, list[TokenEvent]] = {}
        for event in events:
            by_request.setdefault(event.request_id, []).append(event)
        for request_id, own in by_request.items():
            if request_id in waiting:
                _deliver(waiting[request_id], own)
                if own[-1].finish_reason is not None:
                    del waiting[request_id]
        self._rest_if_idle(key)

    def _fail(self, key: int, engine: Engine) -> None:
        for request_id, add in self._replies.pop(key, {}).items():
            engine.cancel(request_id)
            _deliver(add, Unavailable("the model failed while it wrote this reply; try again"))
        self._engines.pop(key, None)

    def _rest_if_idle(self, key: int) -> None:
        """Lets go of an engine without requests, so that an unloaded model's memory is given back."""
        if not self._replies.get(key):
            self._replies.pop(key, None)
            self._engines.pop(key, None)


def _deliver(add: Add, item: list[TokenEvent] | Exception) -> None:
    try:
        add.loop.call_soon_threadsafe(add.reply.events.put_nowait, item)
    except RuntimeError:
        # The loop is closed: its replies have no reader any more.
        logger.debug("dropped tokens of request=%s: its event loop is closed", add.request.request_id)
