"""A training job: what was asked, by whom, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


class JobState(StrEnum):
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The last report of a run. `metrics` are the newest step's; `eta_s` is None until it can be told."""

    step: int = 0
    total_steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    eta_s: float | None = None

    @property
    def percent(self) -> float:
        return 100.0 * self.step / self.total_steps if self.total_steps else 0.0


class JobService(Protocol):
    """What the API asks of jobs. Implemented by the scheduler actor's handle and by a fake in tests. All methods
    return JSON-ready dicts (see `views.py`) and raise PlatformError subclasses (NotFound for another owner's job)."""

    async def submit(self, config: dict[str, Any], *, owner: str) -> dict[str, Any]: ...

    async def get(self, job_id: str, *, owner: str | None) -> dict[str, Any]: ...

    async def list(
        self, *, owner: str | None, state: JobState | None = None, limit: int = 50
    ) -> list[dict[str, Any]]: ...

    async def cancel(self, job_id: str, *, owner: str | None) -> dict[str, Any]: ...

    async def logs(self, job_id: str, *, owner: str | None, tail: int = 200) -> str: ...
