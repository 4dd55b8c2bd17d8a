"""What a sweep has found so far: a row for each trial, kept as JSON in the sweep's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from chatgrpo.jobs.run_folder import write_atomic


class TrialState(StrEnum):
    RUNNING = "running"
    COMPLETED = "completed"
    STOPPED = "stopped"
    """Ended early by the scheduler of the sweep, because others were better."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of training: what trial `trial_id` did with these values after step `from_step`."""

    trial_id: str
    from_step: int
    params: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """`job_id` names the trial's run folder, and its model once it has completed. `best` and `last` are values of the
    sweep's metric; None until one was reported.

    A trial that took over another's policy has a `lineage`, how that policy was trained from the start up to what the
    trial itself does with it; `best` then counts from the last takeover."""

    trial_id: str
    job_id: str
    params: dict[str, Any]
    state: TrialState = TrialState.RUNNING
    step: int = 0
    best: float | None = None
    last: float | None = None
    error: str | None = None
    takeovers: int = 0
    lineage: tuple[Segment, ...] = ()

    @property
    def since_step(self) -> int:
        """The step of its last takeover, 0 without one."""
        return self.lineage[-1].from_step if self.lineage else 0


@dataclass(slots=True)
class Table:
    """The trials of a sweep by id, in the order of their start."""

    metric: str
    mode: Literal["max", "min"]
    trials: dict[str, Trial] = field(default_factory=dict)

    def start(self, trial_id: str, job_id: str, params: Mapping[str, Any]) -> None:
        """A trial that goes on after a restart keeps what it had."""
        known = self.trials.get(trial_id)
        if known is None:
            self.trials[trial_id] = Trial(trial_id=trial_id, job_id=job_id, params=dict(params))
        else:
            self.trials[trial_id] = replace(known, state=TrialState.RUNNING, error=None)

    def report(self, trial_id: str, metrics: Mapping[str, Any]) -> None:
        trial = self.trials[trial_id]
        value = metrics.get(self.metric)
        if value is not None and math.isfinite(value):
            better = trial.best is None or self.rank(value) > self.rank(trial.best)
            trial = replace(trial, last=float(value), best=float(value) if better else trial.best)
        self.trials[trial_id] = replace(trial, step=max(trial.step, int(metrics.get("step", 0))))

    def take_over(self, trial_id: str, donor_id: str, *, step: int, params: Mapping[str, Any]) -> None:
        """`trial_id` goes on from the donor's checkpoint of `step` with `params`."""
        trial, donor = self.trials[trial_id], self.trials[donor_id]
        before = donor.lineage or (Segment(trial_id=donor_id, from_step=0, params=donor.params),)
        self.trials[trial_id] = replace(
            trial,
            params=dict(params),
            step=step,
            best=donor.last,
            last=donor.last,
            takeovers=trial.takeovers + 1,
            lineage=(*before, Segment(trial_id=trial_id, from_step=step, params=dict(params))),
        )

    def end(self, trial_id: str, state: TrialState, error: str | None = None) -> None:
        self.trials[trial_id] = replace(self.trials[trial_id], state=state, error=error)

    @property
    def num_ended(self) -> int:
        return sum(trial.state is not TrialState.RUNNING for trial in self.trials.values())

    def ranked(self) -> list[Trial]:
        """Best first; those without a value last. Of equals the earlier one leads."""
        return sorted(
            self.trials.values(), key=lambda t: -math.inf if t.best is None else self.rank(t.best), reverse=True
        )

    def best(self) -> Trial | None:
        ranked = self.ranked()
        return ranked[0] if ranked and ranked[0].best is not None else None

    def to_json(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "mode": self.mode,
            "trials": [asdict(trial) for trial in self.trials.values()],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Table:
        trials = [
            Trial(
                **row
                | {
                    "state": TrialState(row["state"]),
                    "lineage": tuple(Segment(**segment) for segment in row.get("lineage", ())),
                }
            )
            for row in data["trials"]
        ]
        return cls(data["metric"], data["mode"], {trial.trial_id: trial for trial in trials})

    def save(self, path: Path) -> None:
        write_atomic(path, json.dumps(self.to_json()))

    @classmethod
    def load(cls, path: Path) -> Table | None:
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def rank(self, value: float) -> float:
        """More is better, whatever the mode."""
        return value if self.mode == "max" else -value
