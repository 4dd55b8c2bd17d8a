"""How the HTTP side is doing, counted in this process: requests, errors, durations, open connections."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# From a cached GET (a millisecond) to a long streamed reply on a CPU (minutes).
_BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTotals:
    """Since the process started. `error_rate` is the share of answers with status 500 and above."""

    total_requests: int
    error_rate: float
    average_response_time_s: float
    active_connections: int


class RequestMetrics:
    """Metrics of one API process. Labels are route templates and status classes, so their number is bounded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "chatgrpo_http_requests",
            "HTTP requests answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "chatgrpo_http_request_seconds",
            "Time from the request to the end of its answer; streams count until their last byte.",
            ["route"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._open = Gauge(
            "chatgrpo_http_connections", "Requests and sockets being served now.", registry=self.registry
        )
        self._num_finished = self._num_errors = self._num_open = 0
        self._sum_s = 0.0

    def opened(self) -> None:
        self._num_open += 1
        self._open.set(self._num_open)

    def closed(self) -> None:
        self._num_open -= 1
        self._open.set(self._num_open)

    def answered(self, *, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, f"{status // 100}xx").inc()
        self._seconds.labels(route).observe(seconds)
        self._num_finished += 1
        self._num_errors += status >= 500
        self._sum_s += seconds

    def totals(self) -> RequestTotals:
        finished = max(1, self._num_finished)
        return RequestTotals(
            total_requests=self._num_finished,
            error_rate=self._num_errors / finished,
            average_response_time_s=self._sum_s / finished,
            active_connections=self._num_open,
        )

    def prometheus(self) -> bytes:
        """Text exposition format 0.0.4."""
        return generate_latest(self.registry)


class MeasureRequests:
    """ASGI middleware: feeds `metrics`. Touches no header and no body, so streams and cancellation pass through."""

    def __init__(self, app: AsgiApp, *, metrics: RequestMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        # A request that ends without an answer was cancelled by its client: nginx's status for that.
        status, started = 499, time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.metrics.opened()
        try:
            await self.app(scope, receive, watched)
        except Exception:
            status = 500
            raise
        finally:
            self.metrics.closed()
            if scope["type"] == "http":
                seconds = time.perf_counter() - started
                self.metrics.answered(
                    method=_method(scope["method"]), route=_route(scope), status=status, seconds=seconds
                )


def _method(method: str) -> str:
    return method if method in {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"} else "other"


def _route(scope: Scope) -> str:
    """The template (`/api/v2/jobs/{job_id}`), never the raw path, whose number is unbounded."""
    return getattr(scope.get("route"), "path", "unmatched")
