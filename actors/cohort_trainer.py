"""LoRA runs on one base as one worker of Ray Train: runs that were named together, or the trials of a sweep.

What they report is in their run folders; the worker writes them, and the table of a sweep, as it goes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from actors import names
from chatgrpo.config import PlatformConfig
from chatgrpo.errors import PlatformError
from chatgrpo.jobs.run_folder import RunFolder
from chatgrpo.jobs.sweeps import job as sweep_job
from chatgrpo.jobs.sweeps.config import SweepConfig
from chatgrpo.jobs.sweeps.draw import draw
from chatgrpo.jobs.sweeps.space import trial_config
from chatgrpo.jobs.sweeps.table import Table, TrialState
from chatgrpo.training.cohort_rules import check_cohort
from chatgrpo.training.config import TrainConfig

logger = logging.getLogger(__name__)

Explain = Callable[[BaseException], tuple[str, str]]
"""train_grpo.explain"""

_TABLE_ROW = "{:05d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A run of a cohort. `params`: how it differs from the others of its sweep."""

    run_id: str
    config: TrainConfig
    params: Mapping[str, Any] | None = None


def train_cohort(trials: Sequence[Trial], *, platform: PlatformConfig, explain: Explain) -> dict[str, dict[str, Any]]:
    """Trains all on the current cluster; their results by run. Raises InvalidRequest when they cannot share a base."""
    check_cohort([trial.config for trial in trials])
    _fit(trials, _Setup(platform=platform, explain=explain, at_once=len(trials)), name=trials[0].run_id)
    return {t.run_id: RunFolder.of(platform.runs_dir, t.run_id).read_result() or {} for t in trials}


def run_shared_sweep(
    sweep: SweepConfig, *, sweep_id: str, platform: PlatformConfig, attempt: int, explain: Explain
) -> dict[str, Any]:
    """Runs or continues a sweep with `share_base`; returns what `result.json` holds. Raises PlatformError when every
    trial failed."""
    folder = RunFolder.of(platform.runs_dir, sweep_id)
    table = Table.load(sweep_job.table_path(folder)) or Table(sweep.metric, sweep.mode)
    base = sweep.train.model_dump(mode="json")
    points = draw(sweep.space, num_samples=sweep.num_samples, seed=sweep.seed)
    ended = {row.trial_id for row in table.trials.values() if row.state is not TrialState.RUNNING}
    trials = [
        Trial(run_id=f"{sweep_id}-{_TABLE_ROW.format(index)}", config=trial_config(base, params), params=params)
        for index, params in enumerate(points)
        if _TABLE_ROW.format(index) not in ended
    ]
    setup = _Setup(platform=platform, explain=explain, at_once=sweep.max_concurrent, sweep=sweep, sweep_id=sweep_id)
    if trials:
        _fit(trials, setup, name=sweep_id, attempt=attempt)
    table = Table.load(sweep_job.table_path(folder)) or table
    stopped = folder.read_stop() is not None
    if not stopped:
        failures = [row.error for row in table.trials.values() if row.state is TrialState.FAILED]
        if failures and len(failures) == len(table.trials):
            raise PlatformError(f"every trial failed, the first with: {failures[0]}")
        if (best := table.best()) is not None:
            found = sweep_job.best_config(base, best.params)
            sweep_job.best_path(folder).write_text(yaml.safe_dump(found, sort_keys=False), encoding="utf-8")
    return sweep_job.result("stopped" if stopped else "succeeded", table, num_samples=sweep.num_samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setup:
    """What the worker is told beside its trials."""

    platform: PlatformConfig
    explain: Explain
    at_once: int
    sweep: SweepConfig | None = None
    sweep_id: str = ""


def _fit(trials: Sequence[Trial], setup: _Setup, *, name: str, attempt: int = 1) -> None:
    for trial in trials:
        RunFolder.of(setup.platform.runs_dir, trial.run_id).prepare(trial.config.model_dump(mode="json"))
    wanted = trials[0].config.resources
    resources: dict[str, float] = {"CPU": wanted.cpus_per_worker}
    if wanted.memory_gb_per_worker:
        resources["memory"] = wanted.memory_gb_per_worker * 1e9
    gpus = wanted.gpus_per_worker
    if gpus is None:
        gpus = float(ray.cluster_resources().get("GPU", 0) >= 1)  # type: ignore[no-untyped-call]
    if gpus:
        resources["GPU"] = gpus
    trainer = TorchTrainer(
        partial(_worker, list(trials), setup, attempt),
        scaling_config=ScalingConfig(num_workers=1, use_gpu=bool(gpus), resources_per_worker=resources),
        run_config=RunConfig(name="ray", storage_path=str(RunFolder.of(setup.platform.runs_dir, name).path)),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
    )
    assert trainer.fit().error is None  # fit raises


def _worker(trials: Sequence[Trial], setup: _Setup, attempt: int) -> None:
    """Imports are here: the driver needs no torch."""
    import torch

    from chatgrpo.plugins import load_plugins
    from chatgrpo.training.cohort import Member, train_together
    from chatgrpo.training.loop import Outcome, Place

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    torch.set_num_threads(trials[0].config.resources.threads_per_worker or os.cpu_count() or 1)
    load_plugins(setup.platform.plugins)
    home = setup.platform.home.expanduser().resolve()
    desk = _Desk(setup, home / "runs", attempt)

    def end(trial: Trial, ended: Outcome | Exception) -> None:
        folder = RunFolder.of(home / "runs", trial.run_id)
        if isinstance(ended, Exception):
            cause, message = setup.explain(ended)
            folder.write_result({"status": "failed", "error": message, "cause": cause})
        else:
            folder.write_result(ended.result(folder.path))
        desk.ended(trial)

    members = [
        Member(
            config=trial.config,
            place=Place(run_id=trial.run_id, home=home, run_dir=RunFolder.of(home / "runs", trial.run_id).path),
            report=partial(desk.report, trial),
            on_end=partial(end, trial),
        )
        for trial in trials
    ]
    train_together(members, at_once=setup.at_once, may_begin=desk.may_begin)


class _Desk:
    """Where the runs of a worker report, each from its thread: keeps the table of a sweep, hands a stop of the sweep on
    to its trials, and tells the platform's scheduler, if it runs."""

    def __init__(self, setup: _Setup, runs_dir: Path, attempt: int) -> None:
        self._sweep, self._sweep_id, self._runs_dir, self._attempt = setup.sweep, setup.sweep_id, runs_dir, attempt
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._folder = RunFolder.of(runs_dir, setup.sweep_id)
        self._table: Table | None = None
        if setup.sweep is not None:
            known = Table.load(sweep_job.table_path(self._folder))
            self._table = known or Table(setup.sweep.metric, setup.sweep.mode)
        try:
            self._scheduler: Any = ray.get_actor(names.JOB_SCHEDULER, namespace=names.NAMESPACE)
        except ValueError:
            self._scheduler = None

    def may_begin(self) -> bool:
        if self._sweep is None:
            return True
        hours = self._sweep.max_runtime_hours
        late = hours is not None and time.monotonic() - self._began > hours * 3600
        return not late and self._folder.read_stop() is None

    def report(self, trial: Trial, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        logger.info(
            "run=%s step %s/%s reward=%s", trial.run_id, metrics["step"], metrics["total_steps"], metrics.get("reward")
        )
        if self._table is None:
            self._tell(trial.run_id, metrics)
            return
        with self._lock:
            self._row(trial)
            self._table.report(_row_id(trial), metrics)
            self._save()
        if (reason := self._folder.read_stop()) is not None:
            RunFolder.of(self._runs_dir, trial.run_id).ask_stop(reason)

    def ended(self, trial: Trial) -> None:
        if self._table is None:
            return
        result = RunFolder.of(self._runs_dir, trial.run_id).read_result() or {}
        with self._lock:
            self._row(trial)
            if result["status"] == "failed":
                self._table.end(_row_id(trial), TrialState.FAILED, result["error"])
            elif result["status"] == "succeeded":
                self._table.end(_row_id(trial), TrialState.COMPLETED)
            self._save()

    def _row(self, trial: Trial) -> None:
        assert self._table is not None
        if _row_id(trial) not in self._table.trials:
            self._table.start(_row_id(trial), trial.run_id, trial.params or {})

    def _save(self) -> None:
        assert self._table is not None
        assert self._sweep is not None
        self._table.save(sweep_job.table_path(self._folder))
        figures: dict[str, float] = {"step": self._table.num_ended, "total_steps": self._sweep.num_samples}
        if (best := self._table.best()) is not None and best.best is not None:
            figures[self._table.metric] = best.best
        self._tell(self._sweep_id, figures)

    def _tell(self, job_id: str, figures: Mapping[str, float]) -> None:
        if self._scheduler is not None:
            self._scheduler.report.remote(job_id, self._attempt, dict(figures))


def _row_id(trial: Trial) -> str:
    return trial.run_id.rpartition("-")[2]
