"""From the end of a span to the collector: a bounded queue, one thread, OTLP over HTTP.

The SDK's batch processor and exporter do the same; encoding a span there takes 35 us of the process that serves
requests, here it takes 4 for those of requests. Who ends a span appends to a queue and goes on, whatever the collector
does; what does not fit and what cannot be sent is counted in `chatgrpo_spans_dropped_total`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

import httpx
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.util.re import parse_env_headers

from chatgrpo.monitoring.catalog import SPANS_DROPPED
from chatgrpo.monitoring.meters import PROCESS
from chatgrpo.monitoring.request_spans import RequestSpan
from chatgrpo.monitoring.span_encoding import RequestSpanEncoder

logger = logging.getLogger(__name__)

Ended: TypeAlias = ReadableSpan | RequestSpan

# What one process serves in some seconds; a collector that is away longer costs the spans.
MAX_WAITING = 8192
# A message of at most some hundred KB.
BATCH = 512
INTERVAL_S = 2.0
# Until what was not taken is sent once more.
RETRY_S = 1.0
TIMEOUT_S = 5.0
# Answers after which the same may be sent again (OTLP specification).
_TRY_AGAIN = frozenset({429, 502, 503, 504})


class SpanQueue(SpanProcessor):
    """Takes what has ended, sends it from a thread of its own."""

    def __init__(self, sender: Sender, *, max_waiting: int = MAX_WAITING, interval_s: float = INTERVAL_S) -> None:
        self._sender, self._max_waiting, self._interval_s = sender, max_waiting, interval_s
        self._waiting: deque[Ended] = deque()
        self._dropped = PROCESS.of(SPANS_DROPPED)
        self._sending = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None: ...

    def on_end(self, span: ReadableSpan) -> None:
        if span.context.trace_flags.sampled:
            self.put(span)

    def put(self, span: Ended) -> None:
        """Never waits."""
        if len(self._waiting) >= self._max_waiting:
            self._dropped.inc()
        else:
            self._waiting.append(span)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Sends what has ended by now; stops at the first message that is not taken, and what waits behind it goes on
        waiting: a collector that is away for a moment costs little, one that hangs holds nobody up for long."""
        if not self._sending.acquire(timeout=timeout_millis / 1000):
            return False
        try:
            return all(self._send_batch() for _ in range(0, len(self._waiting), BATCH))
        finally:
            self._sending.release()

    def shutdown(self) -> None:
        self._ended.set()
        self._thread.join(2 * TIMEOUT_S)
        self.force_flush(int(2000 * TIMEOUT_S))
        self._sender.close()

    def _run(self) -> None:
        while not self._ended.wait(self._interval_s):
            self.force_flush()

    def _send_batch(self) -> bool:
        batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        is_sent = not batch or self._sender.send(batch, give_up=self._ended)
        if not is_sent:
            self._dropped.inc(len(batch))
        return is_sent


class Sender:
    """OTLP/HTTP to `endpoint`, with the headers of OTEL_EXPORTER_OTLP_HEADERS. Used by one thread at a time."""

    def __init__(self, endpoint: str, resource: Resource) -> None:
        self._endpoint = endpoint
        named = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_HEADERS") or os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "")
        headers = {**parse_env_headers(named, liberal=True), "content-type": "application/x-protobuf"}
        self._http = httpx.Client(headers=headers, timeout=TIMEOUT_S)
        self._encoder = RequestSpanEncoder(resource)
        self._is_down = False

    def send(self, spans: Sequence[Ended], *, give_up: threading.Event) -> bool:
        """False when they were not taken; where that may help, they are sent once more."""
        body = self.encode(spans)
        status = self._post(body)
        if status in _TRY_AGAIN and not give_up.wait(RETRY_S):
            status = self._post(body)
        sent = 200 <= status < 300
        if self._is_down == sent:
            self._is_down = not sent
            said = "takes spans again" if sent else f"takes no spans (status {status}); they are dropped"
            logger.warning("the trace collector %s %s", self._endpoint, said)
        return sent

    def encode(self, spans: Sequence[Ended]) -> bytes:
        """An ExportTraceServiceRequest. Serialised messages add up: what the SDK writes of its spans, then ours."""
        theirs = [s for s in spans if isinstance(s, ReadableSpan)]
        ours = [s for s in spans if isinstance(s, RequestSpan)]
        return (encode_spans(theirs).SerializeToString() if theirs else b"") + self._encoder.encode(ours)

    def close(self) -> None:
        self._http.close()

    def _post(self, body: bytes) -> int:
        """The status of the answer; 503 where there was none, 408 where it did not come in time."""
        try:
            return self._http.post(self._endpoint, content=body).status_code
        except httpx.TimeoutException:
            return 408
        except httpx.HTTPError as error:
            logger.debug("spans were not sent: %s", error)
            return 503
