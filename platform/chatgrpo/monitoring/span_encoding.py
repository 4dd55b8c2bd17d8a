"""Spans of requests as OTLP, with the names of the semantic conventions for HTTP servers.

`as_message` says what a span is in protobuf. Nearly all spans differ in ids, times and path alone: for those the bytes
of the rest are kept, and the few fields that differ are written by hand, a fifth of the time (the tests compare both).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2 as otlp
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from chatgrpo.monitoring.request_spans import RequestSpan

_SAMPLED = 1
# Field numbers with their wire types, as trace.proto has them.
_TRACE_ID, _SPAN_ID, _PARENT_ID = b"\x0a\x10", b"\x12\x08", b"\x22\x08"
_START, _END, _FLAGS = 0x39, 0x41, b"\x85\x01"
_RESOURCE_SPANS, _SCOPE_SPANS, _SPANS = b"\x0a", b"\x12", b"\x12"
_TIMES = struct.Struct("<BQBQ")


class RequestSpanEncoder:
    """For one process, which `resource` describes."""

    def __init__(self, resource: Resource) -> None:
        # As the SDK writes it: of a span of its own without the span.
        context = SpanContext(trace_id=1, span_id=1, is_remote=False)
        written = encode_spans([ReadableSpan("", context=context, resource=resource)]).resource_spans[0]
        self._resource = otlp.ResourceSpans(resource=written.resource).SerializeToString()
        self._scope = otlp.ScopeSpans(scope=InstrumentationScope(name="chatgrpo")).SerializeToString()

    def encode(self, spans: Sequence[RequestSpan]) -> bytes:
        """The bytes of an ExportTraceServiceRequest with these spans; none for none."""
        if not spans:
            return b""
        parts = [self._scope]
        for span in spans:
            body = as_bytes(span)
            parts += (_SPANS, _varint(len(body)), body)
        scope = b"".join(parts)
        return _field(_RESOURCE_SPANS, self._resource + _field(_SCOPE_SPANS, scope))


def as_bytes(span: RequestSpan) -> bytes:
    parent = span.parent
    if span.name or span.attributes or span.events or span.links or (parent is not None and parent.trace_state):
        whole: bytes = as_message(span).SerializeToString()
        return whole
    return b"".join(
        (
            _TRACE_ID,
            span.context.trace_id.to_bytes(16, "big"),
            _SPAN_ID,
            span.context.span_id.to_bytes(8, "big"),
            b"" if parent is None else _PARENT_ID + parent.span_id.to_bytes(8, "big"),
            _common(span.method, span.route, span.scheme, span.status, span.is_error, span.error),
            _path(span.path),
            _TIMES.pack(_START, span.start_ns, _END, span.end_ns),
            _FLAGS,
            _flags(parent).to_bytes(4, "little"),
        )
    )


def as_message(span: RequestSpan) -> otlp.Span:
    parent = span.parent
    message: otlp.Span = otlp.Span.FromString(
        _common(span.method, span.route, span.scheme, span.status, span.is_error, span.error) + _path(span.path)
    )
    message.trace_id = span.context.trace_id.to_bytes(16, "big")
    message.span_id = span.context.span_id.to_bytes(8, "big")
    message.start_time_unix_nano, message.end_time_unix_nano = span.start_ns, span.end_ns
    message.flags = _flags(parent)
    if parent is not None:
        message.parent_span_id = parent.span_id.to_bytes(8, "big")
        message.trace_state = parent.trace_state.to_header()
    if span.name is not None:
        message.name = span.name
    message.attributes.extend(_pairs(span.attributes))
    for name, at_ns, attributes in span.events:
        message.events.add(name=name, time_unix_nano=at_ns, attributes=_pairs(attributes))
    for context, attributes in span.links:
        message.links.add(
            trace_id=context.trace_id.to_bytes(16, "big"),
            span_id=context.span_id.to_bytes(8, "big"),
            attributes=_pairs(attributes),
        )
    return message


@lru_cache(1024)
def _common(method: str, route: str | None, scheme: str, status: int, is_error: bool, error: str | None) -> bytes:
    """What many spans share. All but the method, a person's own (TRACE, BREW), comes from a bounded set."""
    said: dict[str, object] = {"http.request.method": method, "url.scheme": scheme, "http.response.status_code": status}
    if route is not None:
        said["http.route"] = route
    if is_error:
        said["error.type"] = error or str(status)
    written: bytes = otlp.Span(
        name=f"{method} {route}" if route else method,
        kind=otlp.Span.SPAN_KIND_SERVER,
        attributes=_pairs(said.items()),
        status=otlp.Status(code=otlp.Status.STATUS_CODE_ERROR) if is_error else None,
    ).SerializeToString()
    return written


@lru_cache(1024)
def _path(path: str) -> bytes:
    written: bytes = otlp.Span(attributes=_pairs([("url.path", path)])).SerializeToString()
    return written


def _flags(parent: SpanContext | None) -> int:
    is_remote = parent is not None and parent.is_remote
    known = otlp.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
    return _SAMPLED | known | (otlp.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK if is_remote else 0)


def _pairs(attributes: Iterable[tuple[str, object]]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_value(value)) for key, value in dict(attributes).items()]


def _value(value: object) -> AnyValue:
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case _:
            return AnyValue(string_value=str(value))


def _field(tag: bytes, body: bytes) -> bytes:
    return tag + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    """Seven bits a byte, the low ones first; the eighth says that more follow."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
