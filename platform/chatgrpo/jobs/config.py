"""How the queue behaves: order, quotas, preemption, retries, autoscaling. `configs/jobs.yaml` shows every field."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from chatgrpo.config import Strict
from chatgrpo.jobs.amounts import UNLIMITED, Amount


class Bundle(Strict):
    """An amount of resources. An empty field is not bounded (limits) or nothing (guarantees)."""

    cpus: float | None = Field(None, ge=0, description="Logical CPUs.")
    gpus: float | None = Field(None, ge=0, description="GPUs.")
    memory_gb: float | None = Field(None, ge=0, description="Memory in GB.")

    def as_limit(self) -> Amount:
        set_parts = Amount.of(cpus=self.cpus or 0.0, gpus=self.gpus or 0.0, memory_gb=self.memory_gb or 0.0)
        given = (self.cpus, self.gpus, self.memory_gb)
        return Amount(*(u if g is None else s for u, g, s in zip(UNLIMITED, given, set_parts, strict=True)))

    def as_guarantee(self) -> Amount:
        return Amount.of(cpus=self.cpus or 0.0, gpus=self.gpus or 0.0, memory_gb=self.memory_gb or 0.0)


class Quota(Strict):
    """What one tenant, project or user may have. Children share what their parent has."""

    path: str = Field(min_length=1, description="tenant, tenant/project or tenant/project/user.")
    weight: float = Field(1.0, gt=0, description="Fair share relative to its siblings.")
    guarantee: Bundle = Field(
        default_factory=Bundle, description="Reclaimed from borrowers when this path asks for it."
    )
    limit: Bundle = Field(default_factory=Bundle, description="Never more than this at once.")
    max_jobs: int | None = Field(None, ge=0, description="Jobs that may run at once.")
    gpu_hours: float | None = Field(None, ge=0, description="GPU-hours per `hours_window_days`.")
    cpu_hours: float | None = Field(None, ge=0, description="CPU-hours per `hours_window_days`.")

    @model_validator(mode="after")
    def _guarantee_within_limit(self) -> Self:
        if not self.guarantee.as_guarantee().fits(self.limit.as_limit()):
            raise ValueError(f"guarantee of {self.path!r} exceeds its limit; lower it or raise the limit")
        return self


class Retries(Strict):
    """How often a run that ended by no fault of its user is started again, by cause. User errors: never."""

    worker_lost: int = Field(3, ge=0, description="A worker process died.")
    node_lost: int = Field(5, ge=0, description="A machine, or Ray itself, went away.")
    out_of_memory: int = Field(2, ge=0, description="Each retry halves micro_batch_tokens.")
    launch_failed: int = Field(3, ge=0, description="Ray did not start the run.")
    base_delay_s: float = Field(2.0, ge=0, description="First back-off; doubles with every retry of the same cause.")
    max_delay_s: float = Field(300.0, ge=0, description="Longest back-off.")

    def budget(self, cause: str) -> int:
        return int(getattr(self, cause, 0))


class Autoscaling(Strict):
    """Asks Ray's autoscaler for what the queue needs."""

    mode: Literal["off", "dry_run", "on"] = Field("off", description="dry_run only says what it would ask for.")
    max: Bundle = Field(default_factory=Bundle, description="The cluster at its largest; an empty part is not bounded.")
    idle_s: float = Field(60.0, ge=0, description="Seconds the queue must have been shorter before asking for less.")


class JobsConfig(Strict):
    """The whole policy."""

    policy: Literal["priority", "fair_share"] = Field("fair_share", description="priority: one queue for all.")
    ageing_s: float = Field(600.0, gt=0, description="Seconds of waiting that are worth one step of priority.")
    usage_half_life_s: float = Field(3600.0, gt=0, description="Past usage counts half after this long (fair_share).")
    backfill: bool = Field(True, description="Small jobs may pass a blocked one without delaying it.")
    preemption: bool = Field(True, description="Guarantees are reclaimed at the borrowers' next checkpoint.")
    preempt_lower_priority: bool = Field(False, description="Also stop lower-priority jobs of the same owner.")
    preemption_grace_s: float = Field(600.0, gt=0, description="Longest wait for that checkpoint; then killed.")
    elastic: bool = Field(True, description="Jobs with min_workers grow when nothing else is waiting.")
    elastic_cooldown_s: float = Field(600.0, ge=0, description="Least time between two resizes of a job.")
    quotas: list[Quota] = Field(default_factory=list, description="Paths that are not listed are unbounded.")
    hours_window_days: float = Field(30.0, gt=0, description="Window of gpu_hours and cpu_hours.")
    retries: Retries = Field(default_factory=Retries, description="Budgets and back-off.")
    autoscaling: Autoscaling = Field(default_factory=Autoscaling, description="What to ask of the cluster.")
    launch_timeout_s: float = Field(300.0, gt=0, description="A run that Ray has not started by then is tried again.")
    tick_s: float = Field(1.0, gt=0, description="Seconds between two looks at the queue.")
    max_queued_per_owner: int = Field(1000, ge=1, description="More are refused at submit.")

    @model_validator(mode="after")
    def _one_quota_per_path(self) -> Self:
        paths = [quota.path for quota in self.quotas]
        twice = next((path for path in paths if paths.count(path) > 1), None)
        if twice:
            raise ValueError(f"quotas: {twice!r} is listed twice")
        return self
