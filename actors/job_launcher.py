"""Starts, watches and stops runs through the Ray Jobs API, the same door as `ray job submit`."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from chatgrpo.jobs.controller import Run, RunStatus
from chatgrpo.jobs.job import Job
from chatgrpo.jobs.run_folder import RunFolder
from chatgrpo.monitoring.tracing import trace_env

logger = logging.getLogger(__name__)

OURS = "chatgrpo_runs_dir"
"""Key in a submission's metadata that tells our runs, and whose they are, from other jobs of the cluster."""

_STATUS = {
    JobStatus.PENDING: RunStatus.PENDING,
    JobStatus.RUNNING: RunStatus.RUNNING,
    JobStatus.SUCCEEDED: RunStatus.SUCCEEDED,
    JobStatus.FAILED: RunStatus.FAILED,
    JobStatus.STOPPED: RunStatus.STOPPED,
}


class JobLauncher:
    """`address`: http address of the Ray dashboard. `code`: the folder that is shipped, with `train_grpo.py` in it.
    `env`: environment variables of every run; readable by anyone who may use the Jobs API, so no secrets."""

    def __init__(self, *, address: str, runs_dir: Path, code: Path, env: Mapping[str, str]) -> None:
        self._client = JobSubmissionClient(address)
        self._runs_dir = runs_dir
        self._code = code
        self._env = dict(env)
        self._ended: dict[str, Run] = {}

    def launch(self, job: Job) -> None:
        if job.submission_id in self._submissions():
            return
        config = job.config | job.overrides | {"num_workers": job.workers}
        RunFolder.of(self._runs_dir, job.id).prepare(config)
        # The id is a ULID that the platform made: no user text ever reaches the shell.
        self._client.submit_job(
            entrypoint=f"{shlex.quote(sys.executable)} train_grpo.py --job {job.id}",
            submission_id=job.submission_id,
            metadata={OURS: str(self._runs_dir), "experiment_name": job.experiment_name},
            runtime_env={
                "working_dir": str(self._code),
                "env_vars": self._env
                | trace_env()
                | {"CHATGRPO_ATTEMPT": str(job.attempt), "PYTHONPATH": "./platform"},
            },
        )
        logger.info("launch run=%s workers=%d", job.submission_id, job.workers)

    def kill(self, submission_id: str) -> None:
        self._client.stop_job(submission_id)

    def runs(self) -> dict[str, Run]:
        return {run: self._run(run, details) for run, details in self._submissions().items()}

    def log(self, submission_id: str) -> str:
        if submission_id not in self._submissions():
            return ""
        return str(self._client.get_job_logs(submission_id))

    def _submissions(self) -> dict[str, JobDetails]:
        ours = str(self._runs_dir)
        return {
            details.submission_id: details
            for details in self._client.list_jobs()
            if details.submission_id and (details.metadata or {}).get(OURS) == ours
        }

    def _run(self, submission_id: str, details: JobDetails) -> Run:
        status = _STATUS[details.status]
        if not status.has_ended:
            return Run(submission_id=submission_id, status=status)
        if submission_id not in self._ended:
            self._ended[submission_id] = self._last_words(submission_id, details, status)
        return self._ended[submission_id]

    def _last_words(self, submission_id: str, details: JobDetails, status: RunStatus) -> Run:
        """What an ended run left; its log is kept with the job, because Ray's goes with the cluster."""
        job_id, _, attempt = submission_id.rpartition("-")
        folder = RunFolder.of(self._runs_dir, job_id)
        kept = folder.log(int(attempt))
        log = kept.read_text(encoding="utf-8") if kept.exists() else str(self._client.get_job_logs(submission_id))
        if folder.path.is_dir() and not kept.exists():
            kept.write_text(log, encoding="utf-8")
        result = folder.read_result()
        belongs = result is not None and str(result.get("attempt", attempt)) == attempt
        return Run(
            submission_id=submission_id,
            status=status,
            message=details.message or "",
            exit_code=details.driver_exit_code,
            result=result if belongs else None,
            log=log[-20_000:],
        )


def stage_code(home: Path) -> Path:
    """A folder with exactly the code that a run needs, found wherever it is installed, named by its content.

    Shipping the work tree itself would upload its virtual environment with every job."""
    parts: dict[str, Path] = {
        "train_grpo.py": _origin("train_grpo"),
        "actors": _origin("actors.names").parent,
        "platform/chatgrpo": _origin("chatgrpo").parent,
    }
    files = {
        f"{name}/{path.relative_to(source)}" if source.is_dir() else name: path
        for name, source in parts.items()
        for path in ([source] if source.is_file() else sorted(source.rglob("*")))
        if path.is_file() and "__pycache__" not in path.parts
    }
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(name.encode() + b"\0" + path.read_bytes())
    staged = home / "code" / digest.hexdigest()[:16]
    if not staged.is_dir():
        partial = staged.with_suffix(".partial")
        for name, path in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, partial / name)
        partial.rename(staged)
    return staged


def _origin(module: str) -> Path:
    spec: Any = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{module} is not installed here; install the package chatgrpo")
    return Path(spec.origin)
