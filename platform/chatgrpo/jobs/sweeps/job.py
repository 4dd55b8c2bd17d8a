"""A sweep as a job of the queue, and as the API shows it.

The job reserves room for all trials that run at once, so that they find what they need; the queue knows it by the key
`sweep` in its configuration. It is cancelled, paused, retried and deleted like any job; if interrupted it goes on
with the trials that had not ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chatgrpo.jobs.job import Job
from chatgrpo.jobs.run_folder import RunFolder
from chatgrpo.jobs.sweeps.config import SweepConfig
from chatgrpo.jobs.sweeps.space import trial_config
from chatgrpo.jobs.sweeps.table import Table
from chatgrpo.training.config import TrainConfig

KEY = "sweep"


def is_sweep(config: Mapping[str, Any]) -> bool:
    return KEY in config


def job_config(sweep: SweepConfig, train: Mapping[str, Any]) -> dict[str, Any]:
    """What the queue stores. `train`: the trials' configuration, completed for the cluster. Trials that share a base
    need the room of one run."""
    return {
        **train,
        "experiment_name": sweep.experiment_name,
        "priority": sweep.priority,
        "max_runtime_hours": sweep.max_runtime_hours,
        "num_workers": train["num_workers"] * (1 if sweep.share_base else sweep.max_concurrent),
        "min_workers": None,
        KEY: sweep.model_dump(mode="json", exclude={"train"}) | {"train": dict(train)},
    }


def sweep_of(config: Mapping[str, Any]) -> SweepConfig:
    """The sweep in a job's configuration. What a retry changed (a halved micro-batch) holds for the trials."""
    sweep = dict(config[KEY])
    changed = {"micro_batch_tokens": config.get("micro_batch_tokens", sweep["train"]["micro_batch_tokens"])}
    return SweepConfig.model_validate(sweep | {"train": sweep["train"] | changed})


def table_path(folder: RunFolder) -> Path:
    return folder.path / "trials.json"


def best_path(folder: RunFolder) -> Path:
    """The best configuration, as `chatgrpo train` takes it."""
    return folder.path / "best.yaml"


def detail(job: Job, table: Table | None) -> dict[str, Any]:
    """What a sweep adds to the view of its job: its table, best first, and the best configuration."""
    sweep = job.config[KEY]
    rows: Sequence[Any] = table.ranked() if table else []
    best = table.best() if table else None
    shown = None
    if best is not None:
        shown = asdict(best) | {"config": best_config(sweep["train"], best.params)}
    return {
        "metric": sweep["metric"],
        "mode": sweep["mode"],
        "num_samples": sweep["num_samples"],
        "space": sweep["space"],
        "trials": [asdict(row) for row in rows],
        "best": shown,
    }


def result(status: str, table: Table, *, num_samples: int) -> dict[str, Any]:
    """What `result.json` of a sweep holds."""
    best = table.best()
    return {
        "status": status,
        "error": None,
        "cause": None,
        "step": table.num_ended,
        "total_steps": num_samples,
        "best": None if best is None else {"trial_id": best.trial_id, "params": best.params, "value": best.best},
    }


def best_config(train: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of one trial without what is default anyway."""
    whole = trial_config(train, params).model_dump(mode="json")
    # By whole sections: a section without its `type` could not be read back.
    default = TrainConfig().model_dump(mode="json")
    return {name: value for name, value in whole.items() if value != default[name]}
