"""Runs environments beside generation: plain methods in threads, async ones on one event loop, all with deadlines.

A source with a true attribute `inline` promises that its environments answer at once: they run in the caller's thread,
which also fixes the order of events, and with it every float of a rerun.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from chatgrpo.environments.base import Environment, Step, Task, TaskSource
from chatgrpo.messages import Message
from chatgrpo.resilience.deadline_pool import DeadlinePool

T = TypeVar("T")


class World:
    """One for a collection. An environment's methods never run twice at once."""

    def __init__(self, source: TaskSource, *, timeout_s: float, max_threads: int) -> None:
        self._source, self._timeout_s = source, timeout_s
        self._inline = bool(getattr(source, "inline", False))
        self._pool = DeadlinePool(max_threads=max_threads, name="environment")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def start(self, task: Task) -> Future[tuple[Environment, tuple[Message, ...]]]:
        """A fresh environment and its opening messages."""

        def run() -> tuple[Environment, tuple[Message, ...]]:
            environment = self._source.environment(task)
            return environment, _messages(self._finish(environment.start()))

        return self._submit(run)

    def step(self, environment: Environment, reply: str) -> Future[Step]:

        def run() -> Step:
            step = self._finish(environment.step(reply))
            if not isinstance(step, Step):
                raise TypeError(f"{type(environment).__name__}.step must return a Step, got {type(step).__name__}")
            _messages(step.messages)
            return step

        return self._submit(run)

    def _submit(self, function: Callable[[], T]) -> Future[T]:
        if not self._inline:
            return self._pool.submit(function, timeout_s=self._timeout_s)
        done: Future[T] = Future()
        try:
            done.set_result(function())
        except Exception as error:  # noqa: BLE001 - as from a thread: the caller decides what a failure means
            done.set_exception(error)
        return done

    def close(self) -> None:
        """Does not wait: what still hangs is left behind on daemon threads."""
        self._pool.close()
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)

    def _finish(self, result: Any) -> Any:
        """The value of a plain method, or that of the coroutine which an async one returned."""
        if not inspect.isawaitable(result):
            return result
        # All async environments share a loop, so that what `start` opens (a client, a lock) still works in `step`.
        waiting = asyncio.run_coroutine_threadsafe(_bounded(result, self._timeout_s), self._event_loop())
        return waiting.result()

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_run_loop, args=(self._loop,), name="environment-loop", daemon=True).start()
            return self._loop


async def _bounded(awaitable: Any, timeout_s: float) -> Any:
    return await asyncio.wait_for(awaitable, timeout_s)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        pending: set[asyncio.Task[Any]] = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        ending: Coroutine[Any, Any, Any] = _gather(pending)
        loop.run_until_complete(ending)
    finally:
        loop.close()


async def _gather(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


def _messages(messages: Sequence[Message]) -> tuple[Message, ...]:
    for message in messages:
        if not isinstance(message, Message):
            raise TypeError(f"an environment must answer with Message objects, got {type(message).__name__}")
    return tuple(messages)
