"""Log lines as fields: time, level, logger, event, and the trace that they belong to. JSON for machines, or text."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor

from chatgrpo.monitoring.tracing import trace_id

# Keys, bearer tokens and passwords of addresses, wherever they stand in a line.
_SECRET = re.compile(
    r"(?i)\b(bearer\s+)\S+|\b(cgk_)\w+|((?:password|secret|token|api[_-]?key)=)\S+|(://[^\s:/@]*:)[^\s/@]+(?=@)"
)


def configure_logging(level: str, *, style: Literal["text", "json"] = "text") -> None:
    """Sends the log of this process to its standard error. Replaces what was configured before."""
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace,
        structlog.processors.format_exc_info,
        _mask,
    ]
    last: Processor = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "logger", "event"])
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # It tells the address of every request, and the address of a webhook is a secret.
    logging.getLogger("httpx").setLevel(max(logging.WARNING, logging.getLogger().level))


def _add_trace(_: Any, __: str, event: EventDict) -> EventDict:
    found = trace_id()
    if found:
        event["trace_id"] = found
    return event


def _mask(_: Any, __: str, event: EventDict) -> EventDict:
    """The last line of defence: nothing logs secrets on purpose, but errors of libraries may quote them."""
    return {name: masked(value) if isinstance(value, str) else value for name, value in event.items()}


def masked(text: str) -> str:
    return _SECRET.sub(lambda found: f"{next(filter(None, found.groups()))}***", text)
