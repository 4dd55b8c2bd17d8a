"""Spans, their parents over process boundaries, and a real receiver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from chatgrpo.api import telemetry
from chatgrpo.compat import monitor_async_function, monitoring
from chatgrpo.monitoring import tracing
from chatgrpo.monitoring.requests import MeasureRequests, RequestMetrics
from chatgrpo.monitoring.tracing import (
    carrier,
    environment_carrier,
    make_tracing,
    stream_span,
    trace_env,
    trace_operation,
)
from tests.otlp_receiver import otlp_receiver

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Everything that this test's code traces."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "tracer", lambda: provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


def named(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


async def test_operations_nest_and_travel(spans: InMemorySpanExporter) -> None:
    async with trace_operation("request", component="api"):
        sent = carrier()
    with trace_operation("store", component="store", parent=sent) as span:
        span.set_attribute("rows", 3)
    found = named(spans)
    assert parent_of(found["store"]) == found["request"].context.span_id
    assert found["store"].context.trace_id == found["request"].context.trace_id
    assert dict(found["store"].attributes or {}) == {"component": "store", "rows": 3}


def test_a_process_that_is_started_goes_on_with_the_trace(spans: InMemorySpanExporter) -> None:
    with trace_operation("job.launch"):
        env = trace_env()
    with trace_operation("training.run", parent=environment_carrier(env | {"HOME": "/"})):
        pass
    found = named(spans)
    assert parent_of(found["training.run"]) == found["job.launch"].context.span_id
    assert (environment_carrier({}), set(env)) == ({}, {"TRACEPARENT"})


async def test_a_failed_operation_is_marked_without_its_words(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="what a person wrote"):
        async with trace_operation("request"):
            raise ValueError("what a person wrote")
    span = named(spans)["request"]
    assert not span.status.is_ok
    assert "person" not in span.to_json()


async def test_a_stream_that_another_task_closes_ends_its_span(spans: InMemorySpanExporter) -> None:
    async def words() -> AsyncIterator[str]:
        with stream_span("generate", component="model", parent={"traceparent": PARENT}) as onward:
            assert onward["traceparent"].startswith("00-0af7651916cd43dd8448eb211c80319c-")
            yield "a"
            yield "b"

    stream = words()
    assert await anext(stream) == "a"
    await asyncio.create_task(stream.aclose())  # type: ignore[attr-defined]
    span = named(spans)["generate"]
    assert (span.status.is_ok, parent_of(span)) == (True, 0xB7AD6B7169203331)


async def test_a_function_is_timed_by_outcome(spans: InMemorySpanExporter) -> None:
    @monitor_async_function("halve")
    async def halve(x: int) -> float:
        """Half of it."""
        return 1 / x

    assert (await halve(2), halve.__doc__) == (0.5, "Half of it.")
    with pytest.raises(ZeroDivisionError):
        await halve(0)
    shown = monitoring.get_metrics_dashboard()["chatgrpo_custom_operation_seconds_count"]
    assert sorted((s["labels"]["outcome"], s["value"]) for s in shown if s["labels"]["name"] == "halve") == [  # type: ignore[index]
        ("ZeroDivisionError", 1.0),
        ("ok", 1.0),
    ]
    assert len(spans.get_finished_spans()) == 2


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[Any]]]:
    with otlp_receiver() as found:
        yield found


async def test_one_connected_trace_reaches_a_receiver(
    receiver: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, received = receiver
    made = make_tracing("api", otlp_endpoint=address)
    monkeypatch.setattr(tracing, "tracer", lambda: made.provider.get_tracer("test"))
    metrics = RequestMetrics()
    app = FastAPI(telemetry=telemetry.NONE)
    app.add_middleware(MeasureRequests, metrics=metrics, spans=made.requests)

    @app.get("/api/v2/chat/{name}")
    async def chat(name: str) -> str:
        sent = carrier()
        trace.get_current_span().set_attribute("words", 2)
        with trace_operation("conversation.get", component="store", parent=sent):
            pass
        with stream_span("model.generate", component="model", parent=sent):
            pass
        return name

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://platform") as client:
        await client.get("/api/v2/chat/x", headers={"traceparent": PARENT})
        await client.get("/metrics")
    made.provider.shutdown()
    by_name = {span.name: span for _, span in received}
    request = by_name.pop("GET /api/v2/chat/{name}")
    assert request.trace_id.hex() == PARENT.split("-")[1]
    assert request.parent_span_id.hex() == PARENT.split("-")[2]
    assert {name: span.parent_span_id for name, span in by_name.items()} == {
        "conversation.get": request.span_id,
        "model.generate": request.span_id,
    }
    services = {
        a.value.string_value for resource, _ in received for a in resource.attributes if a.key == "service.name"
    }
    assert services == {"chatgrpo-api"}
    assert {a.key: a.value.string_value or a.value.int_value for a in request.attributes} == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/api/v2/chat/{name}",
        "url.path": "/api/v2/chat/x",
        "url.scheme": "http",
        "words": 2,
    }
    exemplars = [
        sample.exemplar.labels
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.exemplar and sample.labels["route"] == "/api/v2/chat/{name}"
    ]
    assert exemplars == [{"trace_id": PARENT.split("-")[1]}]


def test_without_a_collector_nothing_is_set_up() -> None:
    tracing.configure_tracing("api", otlp_endpoint=None)
    assert not isinstance(trace.get_tracer_provider(), TracerProvider)
    with trace_operation("request"):
        assert (carrier(), tracing.trace_id()) == ({}, None)


async def test_aclosing_a_finished_stream_is_fine(spans: InMemorySpanExporter) -> None:
    async def words() -> Any:
        with stream_span("generate", component="model"):
            yield "a"

    async with aclosing(words()) as stream:
        assert [word async for word in stream] == ["a"]
    assert named(spans)["generate"].status.is_ok
