"""Traces by OpenTelemetry: one request from the gateway through store and model, by W3C context.

    async with monitoring.trace_operation("model_training", component="trainer") as span:
        span.set_attribute("epochs", 3)

    @monitor_async_function("answer")
    async def answer(question: str) -> str: ...

Without `otlp_endpoint` spans are made and dropped. Attributes never hold what people or models wrote.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, Status, StatusCode, Tracer

from chatgrpo.monitoring.catalog import Kind
from chatgrpo.monitoring.meters import PROCESS, custom
from chatgrpo.monitoring.request_spans import RequestSpans

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

P = ParamSpec("P")
R = TypeVar("R")

_OPERATIONS = custom(Kind.HISTOGRAM, "operation_seconds", "Time of traced functions.", ["name", "outcome"])


def tracer() -> Tracer:
    return trace.get_tracer("chatgrpo")


def configure_tracing(service: str, *, otlp_endpoint: str | None, sample_ratio: float = 1.0) -> None:
    """Makes this process send its spans to `{otlp_endpoint}/v1/traces`. Once a process; nothing without an endpoint.
    A collector that is down costs the spans, never a request: they are sent by a thread of their own."""
    if otlp_endpoint is None:
        return
    from opentelemetry.sdk.trace import TracerProvider

    global _request_spans
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        made = make_tracing(service, otlp_endpoint=otlp_endpoint, sample_ratio=sample_ratio)
        trace.set_tracer_provider(made.provider)
        _request_spans = made.requests


_request_spans: RequestSpans | None = None


def request_spans() -> RequestSpans | None:
    """Of this process; None when nobody collects."""
    return _request_spans


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """Both send through one queue: `provider` the spans of the OpenTelemetry API, `requests` those of requests."""

    provider: TracerProvider
    requests: RequestSpans


def make_tracing(service: str, *, otlp_endpoint: str, sample_ratio: float = 1.0) -> Tracing:
    # Only who exports pays for loading the SDK and protobuf.
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    from chatgrpo.monitoring.span_export import Sender, SpanQueue

    resource = Resource.create({"service.name": f"chatgrpo-{service}"})
    provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(sample_ratio)))
    queue = SpanQueue(Sender(f"{otlp_endpoint.rstrip('/')}/v1/traces", resource))
    provider.add_span_processor(queue)
    return Tracing(provider=provider, requests=RequestSpans(queue.put, sample_ratio=sample_ratio))


def trace_id() -> str | None:
    """Of the current span, as 32 hex digits; None when there is none or it is not sampled."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid and context.trace_flags.sampled else None


def carrier() -> dict[str, str]:
    """The current context as W3C headers, to travel with a call to another process."""
    found: dict[str, str] = {}
    propagate.inject(found)
    return found


def trace_env() -> dict[str, str]:
    """The current context as environment variables, for a process that is about to be started."""
    return {name.upper(): value for name, value in carrier().items()}


def environment_carrier(env: Mapping[str, str]) -> dict[str, str]:
    """What `trace_env` gave to this process, as a carrier; empty when nobody did."""
    return {name.lower(): env[name] for name in ("TRACEPARENT", "TRACESTATE") if name in env}


def flush_tracing() -> None:
    """Sends what has ended so far. For processes that may be killed as soon as they have done their work."""
    from opentelemetry.sdk.trace import TracerProvider

    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.force_flush(5000)


class trace_operation:
    """A span around a block, for `with` and `async with`. An exception marks it as failed and goes on."""

    def __init__(self, name: str, *, component: str = "", parent: Mapping[str, str] | None = None) -> None:
        """`parent`: a `carrier` from another process; absent: the current span."""
        self._name, self._component = name, component
        self._context = propagate.extract(parent) if parent else None

    def __enter__(self) -> Span:
        attributes = {"component": self._component} if self._component else {}
        # The words of an error may quote what somebody wrote: its class is all that is kept.
        self._open = tracer().start_as_current_span(
            self._name,
            context=self._context,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        )
        self._span = self._open.__enter__()
        return self._span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_back: TracebackType | None
    ) -> None:
        if kind is not None:
            self._span.set_status(Status(StatusCode.ERROR, kind.__name__))
        self._open.__exit__(kind, error, trace_back)

    async def __aenter__(self) -> Span:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_back: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace_back)


@contextmanager
def stream_span(name: str, *, component: str, parent: Mapping[str, str] | None = None) -> Iterator[dict[str, str]]:
    """A span around an async generator. It does not become the current one, because a generator may be closed by
    another task than began it; what it calls is given the yielded carrier instead."""
    context = propagate.extract(parent) if parent else None
    span = tracer().start_span(name, context=context, attributes={"component": component})
    found: dict[str, str] = {}
    propagate.inject(found, trace.set_span_in_context(span))
    try:
        yield found
    except Exception as error:
        span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        raise
    finally:
        span.end()


def monitor_async_function(name: str) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
    """A span and the time of every call, by outcome (`ok` or the error's class)."""

    def decorate(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        @functools.wraps(function)
        async def measured(*args: P.args, **kwargs: P.kwargs) -> R:
            outcome, started = "ok", time.perf_counter()
            try:
                with trace_operation(name):
                    return await function(*args, **kwargs)
            except BaseException as error:
                outcome = type(error).__name__
                raise
            finally:
                PROCESS.of(_OPERATIONS).observe(time.perf_counter() - started, name=name, outcome=outcome)

        return measured

    return decorate
