"""How the HTTP side is doing, counted in this process: requests, errors, durations, open connections."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from chatgrpo.monitoring.analytics import quantile
from chatgrpo.monitoring.catalog import CACHE_LOOKUPS, HTTP_CONNECTIONS, HTTP_QUEUE_SECONDS, HTTP_REQUESTS, HTTP_SECONDS
from chatgrpo.monitoring.merging import rows_of
from chatgrpo.monitoring.meters import Meters
from chatgrpo.monitoring.tracing import trace_id

_ARRIVED = "arrived"

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTotals:
    """Since the process started. `error_rate` is the share of answers with status 500 and above."""

    total_requests: int
    error_rate: float
    average_response_time_s: float
    active_connections: int
    percentiles_s: dict[str, float | None] = field(default_factory=dict)
    """p50, p95 and p99; None before the first request."""
    cache_hit_rate: float | None = None
    """Of GETs whose answers may be kept; None before the first of them."""


class RequestMetrics:
    """Metrics of one API process. Labels are route templates and status classes, so their number is bounded."""

    def __init__(self) -> None:
        meters = Meters()
        self.registry = meters.registry
        self._requests = meters.of(HTTP_REQUESTS)
        self._seconds = meters.of(HTTP_SECONDS)
        self._queued = meters.of(HTTP_QUEUE_SECONDS)
        self._num_finished = self._num_errors = self._num_open = 0
        self._sum_s = 0.0
        # What is counted with every request is looked up once; routes and classes of status are few.
        self._counted: dict[tuple[str, str, int], tuple[Any, Any]] = {}
        self._waited: dict[str, Any] = {}
        meters.of(HTTP_CONNECTIONS).at().set_function(lambda: self._num_open)

    def opened(self) -> None:
        self._num_open += 1

    def closed(self) -> None:
        self._num_open -= 1

    def began(self, *, route: str, seconds: float) -> None:
        """A handler began, so long after the request arrived."""
        waited = self._waited.get(route)
        if waited is None:
            waited = self._waited[route] = self._queued.at(route=route)
        waited.observe(seconds)

    def answered(self, *, method: str, route: str, status: int, seconds: float) -> None:
        key = method, route, status // 100
        counted = self._counted.get(key)
        if counted is None:
            labels = {"method": method, "route": route, "status": f"{status // 100}xx"}
            counted = self._counted[key] = self._requests.at(**labels), self._seconds.at(route=route)
        requests, took = counted
        requests.inc()
        trace = trace_id()
        took.observe(seconds, {"trace_id": trace} if trace else None)
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
            percentiles_s=self._percentiles(),
            cache_hit_rate=self._cache_hit_rate(),
        )

    def _percentiles(self) -> dict[str, float | None]:
        buckets: dict[float, float] = defaultdict(float)
        for name, labels, value in rows_of(self.registry):
            if name == f"{HTTP_SECONDS.name}_bucket":
                buckets[float(labels["le"])] += value
        return {f"p{100 * share:.0f}": quantile(buckets, share) for share in (0.5, 0.95, 0.99)}

    def _cache_hit_rate(self) -> float | None:
        """The gateway counts its looks in the same registry."""
        looks = [
            self.registry.get_sample_value(CACHE_LOOKUPS.sample_name, {"tier": "response", "result": result}) or 0.0
            for result in ("hit", "miss")
        ]
        return looks[0] / sum(looks) if sum(looks) else None


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

        scope.setdefault("state", {})[_ARRIVED] = started
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


class MeasureQueue:
    """ASGI middleware, the innermost: how long a request waited for what stands in front of its handler."""

    def __init__(self, app: AsgiApp, *, metrics: RequestMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived = scope.get("state", {}).get(_ARRIVED)
        if scope["type"] == "http" and arrived is not None:
            self.metrics.began(route=_route(scope), seconds=time.perf_counter() - arrived)
        await self.app(scope, receive, send)


def _method(method: str) -> str:
    return method if method in {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"} else "other"


def _route(scope: Scope) -> str:
    """The template (`/api/v2/jobs/{job_id}`), never the raw path, whose number is unbounded."""
    return getattr(scope.get("route"), "path", "unmatched")
