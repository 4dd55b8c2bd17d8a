"""A real OTLP/HTTP receiver in this process: spans of any process on this machine."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@contextmanager
def otlp_receiver() -> Iterator[tuple[str, list[Any]]]:
    """(address, spans received so far as (resource, span))."""
    received: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            message = ExportTraceServiceRequest.FromString(body)
            received.extend((r.resource, s) for r in message.resource_spans for g in r.scope_spans for s in g.spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ancestors(span: Any, spans: list[Any]) -> list[str]:
    """Names from the span up to the root of what was received."""
    by_id = {other.span_id: other for other in spans}
    names = []
    while span is not None:
        names.append(span.name)
        span = by_id.get(span.parent_span_id)
    return names
