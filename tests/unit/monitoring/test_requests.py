"""Requests are counted as they end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from chatgrpo.monitoring.catalog import CACHE_LOOKUPS
from chatgrpo.monitoring.meters import Meter
from chatgrpo.monitoring.requests import AsgiApp, MeasureRequests, RequestMetrics


async def nothing(*_: Any) -> Any:
    return {}


async def call(metrics: RequestMetrics, app: AsgiApp, kind: str = "http") -> None:
    scope = {"type": kind, "method": "GET", "route": SimpleNamespace(path="/jobs/{job_id}")}
    await MeasureRequests(app, metrics=metrics)(scope, nothing, nothing)


def num_requests(metrics: RequestMetrics, route: str, status: str) -> float | None:
    labels = {"method": "GET", "route": route, "status": status}
    return metrics.registry.get_sample_value("chatgrpo_http_requests_total", labels)


def answering(status: int) -> AsgiApp:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status})

    return app


async def test_error_rate_is_the_share_of_500s() -> None:
    metrics = RequestMetrics()
    for status in (200, 404, 503, 500):
        await call(metrics, answering(status))
    totals = metrics.totals()
    assert (totals.total_requests, totals.error_rate, totals.active_connections) == (4, 0.5, 0)
    assert num_requests(metrics, "/jobs/{job_id}", "4xx") == 1


async def test_an_app_that_raises_counts_as_an_error() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError

    metrics = RequestMetrics()
    with pytest.raises(RuntimeError):
        await call(metrics, broken)
    assert metrics.totals().error_rate == 1


async def test_a_request_that_its_client_cancelled_is_not_an_error() -> None:
    async def waits(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    metrics = RequestMetrics()
    task = asyncio.create_task(call(metrics, waits))
    await asyncio.sleep(0)
    assert metrics.totals().active_connections == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (metrics.totals().active_connections, metrics.totals().error_rate) == (0, 0)
    assert num_requests(metrics, "/jobs/{job_id}", "4xx") == 1


async def test_sockets_are_open_connections_and_no_requests() -> None:
    open_now: list[int] = []
    metrics = RequestMetrics()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        open_now.append(metrics.totals().active_connections)

    await call(metrics, app, kind="websocket")
    await call(metrics, app, kind="lifespan")
    assert open_now == [1, 0]
    assert metrics.totals().total_requests == 0


def test_before_the_first_request_all_is_zero() -> None:
    totals = RequestMetrics().totals()
    assert (totals.total_requests, totals.error_rate, totals.average_response_time_s) == (0, 0, 0)


def test_percentiles_and_the_share_of_told_answers() -> None:
    metrics = RequestMetrics()
    assert (metrics.totals().percentiles_s, metrics.totals().cache_hit_rate) == (
        {"p50": None, "p95": None, "p99": None},
        None,
    )
    for seconds in [0.003] * 90 + [0.7] * 10:
        metrics.answered(method="GET", route="/", status=200, seconds=seconds)
    found = metrics.totals().percentiles_s
    assert found["p50"] is not None
    assert 0.001 < found["p50"] < 0.005
    assert found["p95"] == pytest.approx(0.75)
    lookups = Meter(CACHE_LOOKUPS, metrics.registry, None)
    for result in ("hit", "hit", "hit", "miss"):
        lookups.inc(tier="response", result=result)
    assert metrics.totals().cache_hit_rate == 0.75
