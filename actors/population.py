"""Population based training under Ray Tune: a trial that takes over from another is paused and started again.

What it goes on from is decided in `chatgrpo.jobs.sweeps.population` and kept in the table of the sweep and in the run
folders, so this object has nothing to remember and a sweep that was interrupted goes on with the same lineages.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler

from chatgrpo.jobs.run_folder import RunFolder
from chatgrpo.jobs.sweeps import inheritance, population
from chatgrpo.jobs.sweeps import job as sweep_job
from chatgrpo.jobs.sweeps.config import Pbt, SweepConfig
from chatgrpo.jobs.sweeps.population import Member
from chatgrpo.jobs.sweeps.table import Table, TrialState

logger = logging.getLogger(__name__)


class PopulationScheduler(FIFOScheduler):
    """Tune tells it of every result, before it tells the keeper of the table."""

    def __init__(self, sweep: SweepConfig, sweep_id: str, runs_dir: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        assert isinstance(sweep.scheduler, Pbt)
        self._sweep, self._pbt, self._sweep_id, self._runs_dir = sweep, sweep.scheduler, sweep_id, runs_dir

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        table = Table.load(self._table_path)
        if table is None or trial.trial_id not in table.trials:
            return self.CONTINUE
        row = table.trials[trial.trial_id]
        if not population.is_due(
            int(result.get("step", 0)),
            last_step=row.step,
            since_step=row.since_step,
            interval_steps=self._pbt.interval_steps,
        ):
            return self.CONTINUE
        if self._folder(row.job_id).read_result() is not None:
            return self.CONTINUE  # its run has ended, and this is its last word
        # The keeper saves it again, when the trial goes on as it is.
        table.report(trial.trial_id, result)
        if not self._takes_over(table, trial.trial_id):
            return self.CONTINUE
        tune_controller.pause_trial(trial, should_checkpoint=False)
        trial.set_config(table.trials[trial.trial_id].params)  # type: ignore[no-untyped-call]
        return self.NOOP

    def _takes_over(self, table: Table, trial_id: str) -> bool:
        row = table.trials[trial_id]
        rng = random.Random(f"{self._sweep.seed}:{trial_id}:{row.takeovers}:{row.step}")
        members = [
            Member(trial_id=other.trial_id, score=table.rank(other.last))
            for other in table.trials.values()
            if other.state is TrialState.RUNNING
            and other.last is not None
            and not inheritance.is_pending(self._folder(other.job_id))
        ]
        donor_id = population.decide(trial_id, members, self._pbt, rng)
        if donor_id is None:
            return False
        donor, number = table.trials[donor_id], row.takeovers + 1
        step = inheritance.bequeath(self._folder(donor.job_id), self._folder(row.job_id), number)
        if step is None:
            logger.warning("sweep=%s trial=%s has no checkpoint to hand on", self._sweep_id, donor_id)
            return False
        params = population.explore(donor.params, self._sweep.space, self._pbt, rng)
        table.take_over(trial_id, donor_id, step=step, params=params)
        table.save(self._table_path)
        logger.info(
            "sweep=%s trial=%s takes over from trial=%s step=%d params=%s",
            self._sweep_id,
            trial_id,
            donor_id,
            step,
            params,
        )
        return True

    @property
    def _table_path(self) -> Path:
        return sweep_job.table_path(self._folder(self._sweep_id))

    def _folder(self, run_id: str) -> RunFolder:
        return RunFolder.of(self._runs_dir, run_id)
