"""Threads for foreign code that may never come back.

The executor of the standard library waits for its threads when the process exits, so one hanging call would hang the
exit. These threads are daemons; a call that overruns its deadline fails with TimeoutError, its thread is written off
and replaced. A thread cannot be killed, so the number of written-off ones is bounded: beyond it new calls fail at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Call:
    function: Callable[[], Any]
    timeout_s: float
    future: Future[Any] = field(default_factory=Future)
    deadline: float = 0.0


class DeadlinePool:
    """At most `max_threads` calls run at once, the others queue; a deadline counts from when its call begins.

    Exactly one of worker and watchdog settles a future: whoever takes the call out of `_running` under the lock."""

    def __init__(self, *, max_threads: int, name: str, max_hung: int = 64) -> None:
        self._max_threads, self._max_hung, self._name = max_threads, max_hung, name
        self._changed = threading.Condition()
        self._queue: deque[_Call] = deque()
        self._running: set[_Call] = set()
        self._num_threads = 0
        self._num_idle = 0
        self._num_hung = 0
        self._watching = False
        self._closed = False

    def submit(self, function: Callable[[], T], *, timeout_s: float) -> Future[T]:
        """The future fails with what `function` raises, or with TimeoutError. Raises RuntimeError once closed."""
        call = _Call(function, timeout_s)
        with self._changed:
            if self._closed:
                raise RuntimeError("the pool is closed")
            refused = self._num_hung >= self._max_hung
            if not refused:
                self._queue.append(call)
                self._spawn()
                self._changed.notify_all()
        if refused:
            call.future.set_exception(TimeoutError(f"not tried: {self._max_hung} earlier calls still hang"))
        return call.future

    def close(self) -> None:
        """Calls that have not begun are cancelled; idle threads end. Does not wait for running calls."""
        with self._changed:
            self._closed = True
            waiting = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        for call in waiting:
            call.future.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _spawn(self) -> None:
        if not self._watching:
            self._watching = True
            threading.Thread(target=self._watch, name=f"{self._name}-watchdog", daemon=True).start()
        if len(self._queue) > self._num_idle and self._num_threads < self._max_threads:
            self._num_threads += 1
            threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _work(self) -> None:
        while (call := self._next()) is not None:
            try:
                result, error = call.function(), None
            except BaseException as raised:  # noqa: BLE001 - foreign code; what it raised goes to the caller
                result, error = None, raised
            if not self._take(call):
                return  # written off meanwhile: another thread has this one's place
            if error is None:
                call.future.set_result(result)
            else:
                call.future.set_exception(error)

    def _next(self) -> _Call | None:
        with self._changed:
            while True:
                while self._queue:
                    call = self._queue.popleft()
                    if call.future.set_running_or_notify_cancel():
                        call.deadline = time.monotonic() + call.timeout_s
                        self._running.add(call)
                        self._changed.notify_all()
                        return call
                if self._closed:
                    self._num_threads -= 1
                    return None
                self._num_idle += 1
                self._changed.wait()
                self._num_idle -= 1

    def _take(self, call: _Call) -> bool:
        with self._changed:
            if call in self._running:
                self._running.remove(call)
                return True
            self._num_hung -= 1
            return False

    def _watch(self) -> None:
        while not (self._closed and not self._running):
            with self._changed:
                now = time.monotonic()
                late = [call for call in self._running if call.deadline <= now]
                for call in late:
                    self._running.remove(call)
                    self._num_hung += 1
                    self._num_threads -= 1
                    if self._queue and not self._closed:
                        self._spawn()
                if not late and not (self._closed and not self._running):
                    nearest = min((call.deadline for call in self._running), default=None)
                    self._changed.wait(None if nearest is None else max(0.0, nearest - now))
            for call in late:
                call.future.set_exception(TimeoutError(f"no answer within {call.timeout_s:g} s"))
