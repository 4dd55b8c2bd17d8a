"""The span of a request, as cheap as can be: what it holds is known when it ends, and is put into words by the thread
that sends it.

The SDK's span and FastAPI's telemetry cost a tenth of a request's processor time. This one is a span of the
OpenTelemetry API all the same: the current one while its request is served, so that others become its children, and
open to `set_attribute` and the like.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextvars import Token
from typing import Any

from opentelemetry import propagate
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    get_current_span,
    set_span_in_context,
)

Scope = MutableMapping[str, Any]

_SAMPLED, _NOT_SAMPLED = TraceFlags(TraceFlags.SAMPLED), TraceFlags(TraceFlags.DEFAULT)
# Which part of a trace's id decides, so that all processes decide alike (as the SDK's TraceIdRatioBased).
_LOW_64_BITS = (1 << 64) - 1


class RequestSpan(Span):
    """Starts when it is made. `name` is None until somebody gives it one of his own: method and route else."""

    def __init__(self, context: SpanContext, parent: SpanContext | None, scope: Scope) -> None:
        self.start_ns = time.time_ns()
        self.end_ns = 0
        self.context, self.parent = context, parent
        self.method: str = scope["method"]
        self.scheme: str = scope.get("scheme", "http")
        self.path: str = scope["path"]
        self.route: str | None = None
        self.status = 0
        self.is_error = False
        self.error: str | None = None
        self.name: str | None = None
        self.attributes: Sequence[tuple[str, object]] = ()
        self.events: Sequence[tuple[str, int, Sequence[tuple[str, object]]]] = ()
        self.links: Sequence[tuple[SpanContext, Sequence[tuple[str, object]]]] = ()

    def get_span_context(self) -> SpanContext:
        return self.context

    def is_recording(self) -> bool:
        return not self.end_ns

    def end(self, end_time: int | None = None) -> None:
        """Its request ends it."""

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        self.attributes = (*self.attributes, *attributes.items())

    def set_attribute(self, key: str, value: Any) -> None:
        self.attributes = (*self.attributes, (key, value))

    def add_event(self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None) -> None:
        event = (name, timestamp or time.time_ns(), tuple((attributes or {}).items()))
        self.events = (*self.events, event)

    def add_link(self, context: SpanContext, attributes: Mapping[str, Any] | None = None) -> None:
        self.links = (*self.links, (context, tuple((attributes or {}).items())))

    def update_name(self, name: str) -> None:
        self.name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        code = status.status_code if isinstance(status, Status) else status
        self.is_error = code is StatusCode.ERROR

    def record_exception(
        self,
        exception: BaseException,
        attributes: Mapping[str, Any] | None = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Its class alone: the words of an error may quote what somebody wrote."""
        self.add_event("exception", {"exception.type": type(exception).__name__, **(attributes or {})}, timestamp)


class Traced:
    """One request being traced: `finish` exactly once, in the task that began it."""

    __slots__ = ("_put", "_token", "span")

    def __init__(self, span: RequestSpan | None, token: Token[Context], put: Callable[[RequestSpan], None]) -> None:
        self.span, self._token, self._put = span, token, put

    def trace_id(self) -> str | None:
        """32 hex digits; None when it is not sampled."""
        return f"{self.span.context.trace_id:032x}" if self.span is not None else None

    def finish(self, *, route: str | None, status: int, error: str | None) -> None:
        """`error`: the class of what was raised instead of an answer."""
        detach(self._token)
        span = self.span
        if span is None:
            return
        span.route, span.status, span.error = route, status, error
        span.is_error = span.is_error or status >= 500
        span.end_ns = time.time_ns()
        self._put(span)


class RequestSpans:
    """Begins spans and hands those that ended to `put`, which never waits. A request that comes with a sampled parent
    is traced; one that begins a trace is with the probability `sample_ratio`."""

    def __init__(self, put: Callable[[RequestSpan], None], *, sample_ratio: float = 1.0) -> None:
        self._put = put
        self._bound = round(sample_ratio * (_LOW_64_BITS + 1))

    def begin(self, scope: Scope) -> Traced:
        parent, around = None, None
        for name, _ in scope["headers"]:
            if name == b"traceparent":
                around = propagate.extract(_text(scope["headers"]), context=Context())
                found = get_current_span(around).get_span_context()
                parent = found if found.is_valid else None
                break
        trace_id = parent.trace_id if parent is not None else random.getrandbits(128) or 1
        is_sampled = parent.trace_flags.sampled if parent is not None else trace_id & _LOW_64_BITS < self._bound
        context = SpanContext(
            trace_id=trace_id,
            span_id=random.getrandbits(64) or 1,
            is_remote=False,
            trace_flags=_SAMPLED if is_sampled else _NOT_SAMPLED,
            trace_state=parent.trace_state if parent is not None else None,
        )
        span = RequestSpan(context, parent, scope) if is_sampled else None
        token = attach(set_span_in_context(NonRecordingSpan(context) if span is None else span, around))
        return Traced(span, token, self._put)


def _text(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, list[str]]:
    """The headers of W3C trace context and baggage; a header may stand there more than once."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        if name in {b"traceparent", b"tracestate", b"baggage"}:
            found.setdefault(name.decode(), []).append(value.decode("latin-1"))
    return found
