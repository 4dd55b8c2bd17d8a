"""What this process counts, as one mapping."""

from __future__ import annotations

from chatgrpo.monitoring.merging import rows_of
from chatgrpo.monitoring.meters import PROCESS


def get_metrics_dashboard() -> dict[str, list[dict[str, object]]]:
    """By metric: its values with their labels. `GET /api/v2/metrics` has those of the whole platform."""
    found: dict[str, list[dict[str, object]]] = {}
    for name, labels, value in rows_of(PROCESS.registry):
        found.setdefault(name, []).append({"labels": labels, "value": value})
    return found
