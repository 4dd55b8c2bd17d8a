"""Runs a sweep with Ray Tune: every trial is a whole run of its own, through the same function as any other run.

Tune takes a function that builds the trainer, never the trainer itself. That function holds no CPU: the workers of its
run do, and the job of the sweep has reserved them. What Tune knows is in the folder `tune` of the sweep, so a sweep
that is started again goes on with the trials that had not ended, each from its own newest checkpoint.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from ray import tune
from ray.train import Checkpoint
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from actors.population import PopulationScheduler
from chatgrpo.config import PlatformConfig
from chatgrpo.errors import InvalidRequest, PlatformError
from chatgrpo.jobs.run_folder import RunFolder
from chatgrpo.jobs.sweeps import inheritance
from chatgrpo.jobs.sweeps import job as sweep_job
from chatgrpo.jobs.sweeps.config import Asha, Choice, Dimension, LogUniform, Pbt, RandInt, SweepConfig, Uniform
from chatgrpo.jobs.sweeps.space import trial_config
from chatgrpo.jobs.sweeps.table import Table, Trial, TrialState

logger = logging.getLogger(__name__)

Report = Callable[[Mapping[str, float]], None]
TrainRun = Callable[..., dict[str, Any]]
"""train_grpo.run"""

_WATCH_S = 0.5
_TRIAL_RETRIES = 2
_HEARD_S = 60.0


def run_sweep(
    sweep: SweepConfig,
    *,
    sweep_id: str,
    platform: PlatformConfig,
    train: TrainRun,
    explain: Callable[[BaseException], tuple[str, str]],
    report: Report,
) -> dict[str, Any]:
    """Runs or continues a sweep on the current cluster; returns what `result.json` holds. `report` is told how many
    trials have ended. Raises PlatformError when every trial failed."""
    folder = RunFolder.of(platform.runs_dir, sweep_id)
    home = folder.path / "tune"
    trainable: Any = tune.with_resources(
        _trial_function(sweep, sweep_id, platform, train, explain),
        # Not nothing, which Tune refuses.
        {"memory": 2**20},
    )
    if tune.Tuner.can_restore(str(home)):
        tuner = tune.Tuner.restore(str(home), trainable=trainable, resume_errored=True)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space={name: _tune_dimension(dimension) for name, dimension in sweep.space.items()},
            tune_config=tune.TuneConfig(
                metric=sweep.metric,
                mode=sweep.mode,
                num_samples=sweep.num_samples,
                search_alg=_search(sweep),
                scheduler=_scheduler(sweep, sweep_id, platform.runs_dir),
                time_budget_s=sweep.max_runtime_hours * 3600 if sweep.max_runtime_hours else None,
                max_concurrent_trials=sweep.max_concurrent,
            ),
            run_config=tune.RunConfig(
                name=home.name,
                storage_path=str(folder.path),
                callbacks=[TableKeeper(sweep_id, Table(sweep.metric, sweep.mode), platform.runs_dir)],
                # By Tune, from the trial's newest checkpoint; mistakes of the user are not tried again (see `trial`).
                failure_config=tune.FailureConfig(max_failures=_TRIAL_RETRIES),
                verbose=0,
            ),
        )
    with _Watch(folder, sweep, report) as watch:
        tuner.fit()
    table = Table.load(sweep_job.table_path(folder)) or Table(sweep.metric, sweep.mode)
    if watch.stopped:
        return sweep_job.result("stopped", table, num_samples=sweep.num_samples)
    failures = [trial.error for trial in table.trials.values() if trial.state is TrialState.FAILED]
    if failures and len(failures) == len(table.trials):
        raise PlatformError(f"every trial failed, the first with: {failures[0]}")
    best = table.best()
    if best is not None:
        found = sweep_job.best_config(sweep.train.model_dump(mode="json"), best.params)
        sweep_job.best_path(folder).write_text(yaml.safe_dump(found, sort_keys=False), encoding="utf-8")
    return sweep_job.result("succeeded", table, num_samples=sweep.num_samples)


class TableKeeper(tune.Callback):
    """Keeps the table of the sweep as Tune tells of its trials. Tune stores this object and brings it back when a sweep
    goes on, so it holds no more than names; the table is read again."""

    def __init__(self, sweep_id: str, empty: Table, runs_dir: Path) -> None:
        self._sweep_id, self._table, self._runs_dir = sweep_id, empty, runs_dir

    @property
    def _path(self) -> Path:
        return sweep_job.table_path(RunFolder.of(self._runs_dir, self._sweep_id))

    def setup(self, *_: Any, **__: Any) -> None:
        self._table = Table.load(self._path) or self._table

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._table.start(trial.trial_id, run_id(self._sweep_id, trial.trial_id), trial.config)
        self._table.save(self._path)

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        if trial.status == TuneTrial.PAUSED:
            # It takes over from another. The scheduler of the population has written that down; this result is past.
            self._table = Table.load(self._path) or self._table
            return
        self._table.report(trial.trial_id, result)
        self._table.save(self._path)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        # Tune calls it complete also when its scheduler ended it; only a run that reached its end leaves a result.
        result = RunFolder.of(self._runs_dir, run_id(self._sweep_id, trial.trial_id)).read_result()
        if result is None:
            self._table.end(trial.trial_id, TrialState.STOPPED)
        elif result["status"] == "failed":
            self._table.end(trial.trial_id, TrialState.FAILED, result["error"])
        else:
            self._table.end(trial.trial_id, TrialState.COMPLETED)
        self._table.save(self._path)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        said = RunFolder.of(self._runs_dir, run_id(self._sweep_id, trial.trial_id)).read_result() or {}
        self._table.end(trial.trial_id, TrialState.FAILED, str(said.get("error") or "its process was lost"))
        self._table.save(self._path)


class MetricCallback(TuneReportCallback):
    """Tells Tune of the steps that have the sweep's metric, and of no others: it would not know what to do. The last
    step is told when the run has ended, so that no scheduler stops a trial between its last step and its export."""

    def __init__(self, metric: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._metric = metric

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        if _is_told_at_once(metrics[0], self._metric):
            super().after_report(run_context, metrics, None)


def _is_told_at_once(line: Mapping[str, Any], metric: str) -> bool:
    return metric in line and line["step"] < line["total_steps"]


def run_id(sweep_id: str, trial_id: str) -> str:
    """The run folder of a trial lies beside that of its sweep, so that its model has a name to chat with."""
    return f"{sweep_id}-{trial_id}"


def _trial_function(
    sweep: SweepConfig,
    sweep_id: str,
    platform: PlatformConfig,
    train: TrainRun,
    explain: Callable[[BaseException], tuple[str, str]],
) -> Callable[[dict[str, Any]], None]:
    base, metric = sweep.train.model_dump(mode="json"), sweep.metric

    def trial(params: dict[str, Any]) -> None:
        trial_id = tune.get_context().get_trial_id()
        name = run_id(sweep_id, trial_id)
        folder = RunFolder.of(platform.runs_dir, name)
        try:
            # Tune writes down what it knows now and then, the table is written at once.
            row = _row(platform.runs_dir, sweep_id, trial_id)
            config = trial_config(base, row.params if row else params)
            folder.prepare(config.model_dump(mode="json"))
            if row and row.takeovers:
                with folder.held():
                    inheritance.adopt(folder, row.takeovers)
            train(config, run_id=name, platform=platform, callbacks=[MetricCallback(metric)])
            told = [line for line in folder.read_metrics() if metric in line]
            _wait_until_heard(
                max((line["step"] for line in told if _is_told_at_once(line, metric)), default=0),
                lambda: _row(platform.runs_dir, sweep_id, trial_id),
            )
            if not told:
                raise InvalidRequest(
                    f"no run reports {metric!r}; GET /api/v2/jobs/ID/metrics shows what they do", "metric"
                )
            tune.report(told[-1])
        except Exception as error:
            cause, message = explain(error)
            folder.write_result({"status": "failed", "error": message, "cause": cause})
            if cause != "user":
                raise

    return trial


def _wait_until_heard(step: int, row: Callable[[], Trial | None]) -> None:
    """Until the table has `step`. What was told before comes to Tune through another queue than the last word of a
    trial, and through a thread of this process that then waits for ever for room in the queue of the last word, should
    that have been said meanwhile."""
    deadline = time.monotonic() + _HEARD_S
    while (known := row()) is None or known.step < step:
        if time.monotonic() > deadline:
            logger.warning("Tune has not taken in step=%d after %.0f s", step, _HEARD_S)
            return
        time.sleep(0.05)


def _row(runs_dir: Path, sweep_id: str, trial_id: str) -> Trial | None:
    table = Table.load(sweep_job.table_path(RunFolder.of(runs_dir, sweep_id)))
    return table.trials.get(trial_id) if table else None


def _tune_dimension(dimension: Dimension) -> Any:
    match dimension:
        case LogUniform():
            return tune.loguniform(dimension.low, dimension.high)
        case Uniform():
            return tune.uniform(dimension.low, dimension.high)
        case RandInt():
            return tune.randint(dimension.low, dimension.high + 1)  # Tune leaves the upper bound out
        case Choice():
            return tune.choice(dimension.values)


def _search(sweep: SweepConfig) -> Any:
    if sweep.search == "random" or isinstance(sweep.scheduler, Pbt):
        return BasicVariantGenerator(random_state=sweep.seed, max_concurrent=sweep.max_concurrent)
    return OptunaSearch(metric=sweep.metric, mode=sweep.mode, seed=sweep.seed)


def _scheduler(sweep: SweepConfig, sweep_id: str, runs_dir: Path) -> TrialScheduler:
    match sweep.scheduler:
        case Asha():
            return AsyncHyperBandScheduler(
                time_attr="step",
                max_t=sweep.scheduler.max_steps or sweep.train.max_steps or 1,
                grace_period=sweep.scheduler.grace_steps,
                reduction_factor=sweep.scheduler.reduction_factor,
            )
        case Pbt():
            return PopulationScheduler(sweep, sweep_id, runs_dir)
        case _:
            return FIFOScheduler()  # type: ignore[no-untyped-call]


class _Watch:
    """Beside `fit`: tells how many trials have ended, and ends it when the job is asked to stop. What Tune knows is
    then on disk."""

    def __init__(self, folder: RunFolder, sweep: SweepConfig, report: Report) -> None:
        self._folder, self._sweep, self._report = folder, sweep, report
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sweep-watch", daemon=True)
        self._told: dict[str, float] = {}
        self.stopped = False

    def __enter__(self) -> _Watch:
        self._tell()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._done.set()
        self._thread.join()
        self._tell()
        # Asked before Tune had its own handler in place.
        return kind is KeyboardInterrupt and self.stopped

    def _watch(self) -> None:
        while not self._done.wait(_WATCH_S):
            self._tell()
            if self._folder.read_stop() is not None:
                self.stopped = True
                os.kill(os.getpid(), signal.SIGINT)
                return

    def _tell(self) -> None:
        table = Table.load(sweep_job.table_path(self._folder)) or Table(self._sweep.metric, self._sweep.mode)
        best = table.best()
        figures: dict[str, float] = {"step": table.num_ended, "total_steps": self._sweep.num_samples}
        if best is not None and best.best is not None:
            figures[self._sweep.metric] = best.best
        if figures != self._told:
            self._report(figures)
            self._told = figures
