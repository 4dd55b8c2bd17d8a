"""The span of a request: who is traced, what it holds, and what becomes of it when nobody takes it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2 as otlp
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanContext, StatusCode

from chatgrpo.monitoring.catalog import SPANS_DROPPED
from chatgrpo.monitoring.meters import PROCESS
from chatgrpo.monitoring.request_spans import RequestSpan, RequestSpans
from chatgrpo.monitoring.span_encoding import as_bytes, as_message
from chatgrpo.monitoring.span_export import Ended, Sender, SpanQueue
from chatgrpo.monitoring.tracing import carrier

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def scope_of(*headers: tuple[str, str]) -> dict[str, Any]:
    encoded = [(name.encode(), value.encode()) for name, value in headers]
    return {"type": "http", "method": "POST", "path": "/api/v2/chat", "headers": encoded}


def parent(flags: str) -> dict[str, Any]:
    return scope_of(("host", "x"), ("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-{flags}"), ("tracestate", "a=1"))


def ended(scope: dict[str, Any], *, status: int = 200, sample_ratio: float = 1.0) -> list[RequestSpan]:
    kept: list[RequestSpan] = []
    traced = RequestSpans(kept.append, sample_ratio=sample_ratio).begin(scope)
    traced.finish(route="/api/v2/chat", status=status, error=None)
    return kept


def test_a_request_goes_on_with_its_callers_trace() -> None:
    kept: list[RequestSpan] = []
    traced = RequestSpans(kept.append, sample_ratio=0.0).begin(parent("01"))
    sent = carrier()
    traced.finish(route=None, status=404, error=None)
    (span,) = kept
    assert span.parent is not None
    assert (traced.trace_id(), f"{span.parent.span_id:016x}") == (TRACE_ID, PARENT_ID)
    assert sent == {"traceparent": f"00-{TRACE_ID}-{span.context.span_id:016x}-01", "tracestate": "a=1"}
    assert carrier() == {}


def test_what_its_caller_does_not_sample_is_not_kept_and_still_travels() -> None:
    kept: list[RequestSpan] = []
    traced = RequestSpans(kept.append).begin(parent("00"))
    sent = carrier()["traceparent"].split("-")
    traced.finish(route=None, status=200, error=None)
    assert (kept, traced.trace_id(), sent[1], sent[3]) == ([], None, TRACE_ID, "00")


@pytest.mark.parametrize("header", ["", "00-zz-1-01", f"00-{'0' * 32}-{PARENT_ID}-01"])
def test_a_wrong_parent_begins_a_new_trace(header: str) -> None:
    (span,) = ended(scope_of(("traceparent", header)))
    assert (span.parent, span.context.is_valid) == (None, True)
    assert f"{span.context.trace_id:032x}" != TRACE_ID


def test_of_new_traces_a_share_is_kept() -> None:
    assert sum(len(ended(scope_of(), sample_ratio=0.25)) for _ in range(2000)) == pytest.approx(500, rel=0.2)
    assert ended(scope_of(), sample_ratio=0.0) == []


def encoded(spans: Sequence[Ended]) -> Any:
    sender = Sender("http://127.0.0.1:9/v1/traces", Resource({"service.name": "chatgrpo-api"}))
    return ExportTraceServiceRequest.FromString(sender.encode(spans)).resource_spans[0]


def test_what_is_added_to_it_is_sent() -> None:
    kept: list[RequestSpan] = []
    traced = RequestSpans(kept.append).begin(parent("01"))
    span = trace.get_current_span()
    span.set_attributes({"model": "tiny", "cached": True, "tokens": 8, "share": 0.5})
    span.add_event("first token", {"after_s": 0.25}, 7)
    span.record_exception(ValueError("what a person wrote"))
    span.add_link(SpanContext(trace_id=1, span_id=2, is_remote=False))
    span.update_name("chat")
    span.set_status(StatusCode.ERROR)
    traced.finish(route="/api/v2/chat", status=200, error="ValueError")
    sent = encoded(kept)
    (found,) = sent.scope_spans[0].spans
    assert (found.name, found.status.code, found.trace_state) == ("chat", 2, "a=1")
    values = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in found.attributes}
    assert values | {"model": "tiny", "cached": True, "tokens": 8, "share": 0.5, "error.type": "ValueError"} == values
    assert [(e.name, e.attributes[0].key) for e in found.events] == [
        ("first token", "after_s"),
        ("exception", "exception.type"),
    ]
    assert (found.events[0].time_unix_nano, found.links[0].span_id) == (7, bytes(7) + b"\x02")
    assert b"person" not in found.SerializeToString()
    assert sent.resource.attributes[0].value.string_value == "chatgrpo-api"


@given(
    method=st.sampled_from(["GET", "POST"]),
    path=st.text(max_size=300),
    route=st.sampled_from([None, "/api/v2/jobs/{job_id}"]),
    status=st.sampled_from([200, 404, 499, 500]),
    error=st.sampled_from([None, "KeyError"]),
    flags=st.sampled_from(["", "01"]),
    times=st.tuples(st.integers(0, 2**63), st.integers(0, 2**63)),
)
def test_the_short_way_to_write_a_span_is_the_long_one(
    method: str, path: str, route: str | None, status: int, error: str | None, flags: str, times: tuple[int, int]
) -> None:
    kept: list[RequestSpan] = []
    header = [("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-{flags}")] if flags else []
    scope = scope_of(*header) | {"method": method, "path": path, "scheme": "https"}
    RequestSpans(kept.append).begin(scope).finish(route=route, status=status, error=error)
    (span,) = kept
    span.start_ns, span.end_ns = times
    assert otlp.Span.FromString(as_bytes(span)) == as_message(span)
    assert encoded(kept).scope_spans[0].spans[0] == as_message(span)


class Collector:
    """Answers with the statuses in turn, the last one again and again."""

    def __init__(self, statuses: list[int]) -> None:
        self.num_asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                # Counted before it is answered: who was answered may look.
                status = statuses[min(outer.num_asked, len(statuses) - 1)]
                outer.num_asked += 1
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def dropped() -> Iterator[Any]:
    """How many spans were counted as dropped since the test began."""

    def now() -> float:
        return PROCESS.registry.get_sample_value(SPANS_DROPPED.sample_name) or 0.0

    PROCESS.of(SPANS_DROPPED)
    before = now()
    return lambda: now() - before


@pytest.mark.parametrize(
    ("statuses", "num_asked", "num_dropped"), [([200], 1, 0), ([503, 200], 2, 0), ([503], 2, 1), ([400], 1, 1)]
)
def test_what_is_not_taken_is_sent_once_more_and_then_counted(
    statuses: list[int], num_asked: int, num_dropped: int, dropped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatgrpo.monitoring.span_export.RETRY_S", 0.0)
    collector = Collector(statuses)
    queue = SpanQueue(Sender(collector.url, Resource({})), interval_s=3600)
    queue.put(ended(scope_of())[0])
    assert queue.force_flush() == (num_dropped == 0)
    assert (collector.num_asked, dropped()) == (num_asked, num_dropped)
    queue.shutdown()
    collector.close()


def test_what_does_not_fit_is_counted(dropped: Any) -> None:
    collector = Collector([200])
    queue = SpanQueue(Sender(collector.url, Resource({})), max_waiting=3, interval_s=3600)
    for _ in range(5):
        queue.put(ended(scope_of())[0])
    queue.shutdown()
    assert (dropped(), collector.num_asked) == (2, 1)
    collector.close()
