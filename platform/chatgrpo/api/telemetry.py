"""FastAPI's own telemetry, off: requests are counted and traced by `monitoring.requests`, at a quarter of the cost,
and its logs would quote what was sent."""

from __future__ import annotations

from fastapi.telemetry import TelemetryConfig

NONE: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
