"""What every process of the platform does first: its log and its traces."""

from __future__ import annotations

from chatgrpo.config import PlatformConfig
from chatgrpo.monitoring.logs import configure_logging
from chatgrpo.monitoring.tracing import configure_tracing


def observe_process(platform: PlatformConfig, service: str) -> None:
    """`service` names the process in traces: api, live, model, store, jobs, hub."""
    configure_logging(platform.log_level, style=platform.log_style)
    configure_tracing(service, otlp_endpoint=platform.otlp_endpoint, sample_ratio=platform.trace_sample_ratio)
