"""Jobs as the API shows them: JSON-ready dicts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from chatgrpo.jobs.amounts import Request
from chatgrpo.jobs.checkpoints import Entry
from chatgrpo.jobs.job import Job, JobState
from chatgrpo.jobs.scheduling.explain import Wait
from chatgrpo.jobs.sweeps.job import is_sweep

CURVE_POINTS = 200
"""A reward curve of more steps is thinned out to about so many points."""


def summary(job: Job, wait: Wait | None = None) -> dict[str, Any]:
    """What a list of jobs shows of one."""
    return {
        "job_id": job.id,
        "status": job.state.value,
        "kind": "sweep" if is_sweep(job.config) else "run",
        "experiment_name": job.experiment_name,
        "owner": job.owner,
        "priority": job.priority,
        "progress": progress(job),
        "metrics": job.progress.metrics,
        "created_at": iso(job.submitted_at),
        "started_at": iso(job.started_at),
        "ended_at": iso(job.ended_at),
        "error": job.error,
        "end_reason": job.end_reason,
        "published_step": job.published_step,
        "pending": _pending(job, wait),
        "links": links(job.id),
    }


def detail(job: Job, wait: Wait | None = None, *, curve: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """All of one job. `curve`: its metric lines, one a step."""
    return summary(job, wait) | {
        "state": job.state.value,
        "state_since": iso(job.state_since),
        "stop_reason": job.stop_reason,
        "attempt": job.attempt,
        "retries": job.retries,
        "reward_curve": reward_curve(curve),
        "evaluations": evaluations(curve),
        "resources": resources(job),
        "usage": {"cpu_hours": job.cpu_seconds / 3600, "gpu_hours": job.gpu_seconds / 3600},
        "config": job.config | job.overrides,
    }


def submitted(job: Job, *, position: int, running_eta_s: float | None) -> dict[str, Any]:
    """The answer to a submission. `running_eta_s`: when the first running job is expected to end, if known."""
    starts_now = position == 0
    estimated = job.submitted_at if starts_now else None if running_eta_s is None else job.submitted_at + running_eta_s
    config = job.config
    return {
        "job_id": job.id,
        "status": job.state.value,
        "experiment_name": job.experiment_name,
        "estimated_start_time": iso(estimated),
        "configuration": {
            "agent_type": "SingleTurnAgent"
            if config["environment"]["type"] in {"reasoning_gym", "dataset", "inline"}
            else "MultiTurnAgent",
            "num_epochs": config["num_epochs"],
            "batch_size": config["prompts_per_step"] * config["num_generations"],
            "resources": resources(job)["requested"],
        },
        "tracking": {"experiment_url": f"/api/v2/jobs/{job.id}"},
        "links": links(job.id),
    }


def progress(job: Job) -> dict[str, Any]:
    percent = 100.0 if job.state is JobState.SUCCEEDED else round(job.progress.percent, 2)
    return {
        "progress_percent": percent,
        "current_step": job.progress.step,
        "total_steps": job.progress.total_steps,
        "eta_s": job.progress.eta_s,
    }


def resources(job: Job) -> dict[str, Any]:
    request = Request.of_config(job.config)
    per_worker, most = request.per_worker, request.most
    return {
        "requested": {
            "cpu_cores": per_worker.cpu * most / 1000,
            "memory_gb": per_worker.memory * most / 1024,
            "gpu_count": per_worker.gpu * most / 1000,
            "workers": most,
            "min_workers": request.least,
        },
        "granted_workers": job.workers,
    }


def links(job_id: str) -> dict[str, str]:
    base = f"/api/v2/jobs/{job_id}"
    return {
        "self": base,
        "cancel": base,
        "logs": f"{base}/logs",
        "events": f"{base}/events",
        "artifacts": f"{base}/checkpoints",
    }


def evaluations(lines: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The held-out evaluations: [{"step", "eval_reward", "eval_accuracy", "eval_tasks"}], the first of the untrained
    policy."""
    names = ("step", "eval_reward", "eval_accuracy", "eval_tasks")
    return [{name: line[name] for name in names if name in line} for line in lines if "eval_reward" in line]


def reward_curve(lines: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """[{"step", "reward"}], thinned out; the last step is always there."""
    points = [
        {"step": line["step"], "reward": line["reward"]}
        for line in lines
        if line.get("reward") is not None and "step" in line
    ]
    stride = max(1, -(-len(points) // CURVE_POINTS))
    return points[::-1][::stride][::-1]


def checkpoint(entry: Entry) -> dict[str, Any]:
    return {
        "step": entry.step,
        "path": str(entry.path),
        "created_at": iso(entry.created_at),
        "size_bytes": entry.size_bytes,
        "metrics": dict(entry.metrics),
    }


def iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def _pending(job: Job, wait: Wait | None) -> dict[str, Any] | None:
    if job.state is not JobState.QUEUED:
        return None
    if wait is None:
        return {"position": None, "reason": "has just been queued", "unblocked_by": "the scheduler's next look"}
    return {"position": wait.position, "reason": wait.reason, "unblocked_by": wait.unblocked_by}
