"""Names of the detached actors, in one place."""

from __future__ import annotations

NAMESPACE = "chatgrpo"
JOB_SCHEDULER = "job_scheduler"
