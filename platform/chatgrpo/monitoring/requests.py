"""How the HTTP side is doing, counted in this process: requests, errors, durations, open connections."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from chatgrpo.monitoring.analytics import quantile
from chatgrpo.monitoring.catalog import (
    CACHE_LOOKUPS,
    HTTP_CONNECTIONS,
    HTTP_QUEUE_SECONDS,
    HTTP_REQUESTS,
    HTTP_SECONDS,
    LABELS_DROPPED,
)
from chatgrpo.monitoring.meters import MAX_LABEL_SETS, OTHER, Meters
from chatgrpo.monitoring.request_spans import RequestSpans
from chatgrpo.monitoring.tallies import RouteTally, family_of, no_trace

_ARRIVED = "arrived"
_UNMATCHED = "unmatched"
_NOT_TRACED = frozenset({"/", "/metrics", "/api/v2/health"})

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
        self._dropped = meters.of(LABELS_DROPPED)
        self._routes: dict[str, RouteTally] = {}
        self._num_open = 0
        meters.registry.register(_Shown(self))

    def opened(self) -> None:
        self._num_open += 1

    def closed(self) -> None:
        self._num_open -= 1

    def began(self, *, route: str, seconds: float) -> None:
        """A handler began, so long after the request arrived."""
        self._tally(route).queued.add(seconds)

    def answered(
        self, *, method: str, route: str, status: int, seconds: float, trace_id: Callable[[], str | None] = no_trace
    ) -> None:
        tally = self._tally(route)
        key = (method, status // 100)
        tally.answers[key] = tally.answers.get(key, 0) + 1
        tally.num_errors += status >= 500
        tally.answered.add(seconds, trace_id)

    def _tally(self, route: str) -> RouteTally:
        tally = self._routes.get(route)
        if tally is None:
            if len(self._routes) >= MAX_LABEL_SETS and route != OTHER:
                self._dropped.inc(metric=HTTP_SECONDS.name)
                return self._tally(OTHER)
            tally = self._routes[route] = RouteTally()
        return tally

    def families(self) -> Iterator[Family]:
        """What was counted so far, as prometheus-client shows it."""
        requests, seconds, queued, connections = map(
            family_of, (HTTP_REQUESTS, HTTP_SECONDS, HTTP_QUEUE_SECONDS, HTTP_CONNECTIONS)
        )
        connections.add_sample(HTTP_CONNECTIONS.name, {}, self._num_open)
        for route, tally in list(self._routes.items()):
            for (method, group), count in list(tally.answers.items()):
                labels = {"method": method, "route": route, "status": f"{group}xx"}
                requests.add_sample(HTTP_REQUESTS.sample_name, labels, count)
            if tally.answered.count:
                tally.answered.show(seconds, {"route": route})
            if tally.queued.count:
                tally.queued.show(queued, {"route": route})
        yield from (requests, seconds, queued, connections)

    def totals(self) -> RequestTotals:
        tallies = self._routes.values()
        total = sum(tally.answered.count for tally in tallies)
        finished = max(1, total)
        return RequestTotals(
            total_requests=total,
            error_rate=sum(tally.num_errors for tally in tallies) / finished,
            average_response_time_s=sum(tally.answered.sum for tally in tallies) / finished,
            active_connections=self._num_open,
            percentiles_s=self._percentiles(),
            cache_hit_rate=self._cache_hit_rate(),
        )

    def _percentiles(self) -> dict[str, float | None]:
        buckets: dict[float, float] = defaultdict(float)
        for tally in self._routes.values():
            for bound, count in tally.answered.cumulative():
                buckets[bound] += count
        return {f"p{100 * share:.0f}": quantile(buckets, share) for share in (0.5, 0.95, 0.99)}

    def _cache_hit_rate(self) -> float | None:
        """The gateway counts its looks in the same registry."""
        looks = [
            self.registry.get_sample_value(CACHE_LOOKUPS.sample_name, {"tier": "response", "result": result}) or 0.0
            for result in ("hit", "miss")
        ]
        return looks[0] / sum(looks) if sum(looks) else None


class _Shown(Collector):
    def __init__(self, metrics: RequestMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Family]:
        return self._metrics.families()


class MeasureRequests:
    """ASGI middleware: feeds `metrics`, and `spans` with a span for every request that is worth one. Touches no header
    and no body, so streams and cancellation pass through."""

    def __init__(self, app: AsgiApp, *, metrics: RequestMetrics, spans: RequestSpans | None = None) -> None:
        self.app = app
        self.metrics = metrics
        self.spans = spans

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # Not a coroutine of its own: each costs every request.
        match scope["type"]:
            case "http":
                return self._measured(scope, receive, send)
            case "websocket":
                return self._counted(scope, receive, send)
        return self.app(scope, receive, send)

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A socket is open for hours: no operation, and no span."""
        self.metrics.opened()
        try:
            await self.app(scope, receive, send)
        finally:
            self.metrics.closed()

    async def _measured(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A request that ends without an answer was cancelled by its client: nginx's status for that.
        status, error, started = 499, None, time.perf_counter()

        def watched(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        traced = self.spans.begin(scope) if self.spans is not None and _is_traced(scope["path"]) else None
        scope.setdefault("state", {})[_ARRIVED] = started
        self.metrics.opened()
        try:
            await self.app(scope, receive, watched)
        except Exception as raised:
            status, error = 500, type(raised).__name__
            raise
        finally:
            self.metrics.closed()
            route = getattr(scope.get("route"), "path", None)
            self.metrics.answered(
                method=_method(scope["method"]),
                route=route or _UNMATCHED,
                status=status,
                seconds=time.perf_counter() - started,
                trace_id=no_trace if traced is None else traced.trace_id,
            )
            if traced is not None:
                traced.finish(route=route, status=status, error=error)


class MeasureQueue:
    """ASGI middleware, the innermost: how long a request waited for what stands in front of its handler."""

    def __init__(self, app: AsgiApp, *, metrics: RequestMetrics) -> None:
        self.app = app
        self.metrics = metrics

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http":
            arrived = scope.get("state", {}).get(_ARRIVED)
            if arrived is not None:
                self.metrics.began(route=_route(scope), seconds=time.perf_counter() - arrived)
        return self.app(scope, receive, send)


def _is_traced(path: str) -> bool:
    """Scrapes, probes and the dashboard's files would bury what people ask."""
    return path not in _NOT_TRACED and not path.startswith("/dashboard/")


def _method(method: str) -> str:
    return method if method in {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"} else "other"


def _route(scope: Scope) -> str:
    """The template (`/api/v2/jobs/{job_id}`), never the raw path, whose number is unbounded."""
    return getattr(scope.get("route"), "path", _UNMATCHED)
