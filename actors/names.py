"""Names of the detached actors, in one place."""

from __future__ import annotations

NAMESPACE = "chatgrpo"
JOB_SCHEDULER = "job_scheduler"
METRICS_HUB = "metrics_hub"
CONVERSATION_SHARD = "conversation_shard-"
"""Followed by the shard's number."""
