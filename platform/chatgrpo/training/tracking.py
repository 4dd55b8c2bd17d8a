"""Where the figures of a run go: always JSON lines in the run folder, and the trackers that `report_to` names.

A tracker that cannot start fails the run; one that cannot log warns once and is left alone.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from chatgrpo.errors import InvalidRequest
from chatgrpo.training.config import TrainConfig

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def publish(self, export: Path, *, step: int) -> None:
        """The policy of `step` was exported to the folder `export`."""
        ...

    def close(self, *, succeeded: bool) -> None: ...


class JsonLines:
    """One object a step in `metrics.jsonl`; a resumed run first drops the lines after its checkpoint."""

    def __init__(self, path: Path, *, resume_step: int = 0) -> None:
        kept: list[str] = []
        if path.is_file():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= resume_step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._path = path

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def publish(self, export: Path, *, step: int) -> None:
        pass

    def close(self, *, succeeded: bool) -> None:
        pass


class MlflowTracker:
    """Parameters, metrics and the published model to MLFLOW_TRACKING_URI, or to an SQLite store under `home`. A job is
    one run, however often it is resumed. The model is an artifact of its run and a new version of the registered model
    `experiment_name`."""

    def __init__(self, config: TrainConfig, run_id: str, home: Path) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        if not mlflow.is_tracking_uri_set():
            mlflow.set_tracking_uri(f"sqlite:///{home / 'mlflow.db'}")
            if mlflow.get_experiment_by_name(config.experiment_name) is None:
                # Without a place of their own, artifacts would lie in the working directory.
                mlflow.create_experiment(config.experiment_name, artifact_location=(home / "mlartifacts").as_uri())
        experiment = mlflow.set_experiment(config.experiment_name)
        self._mlflow, self._name, self._job_id = mlflow, config.experiment_name, run_id
        earlier = mlflow.search_runs(
            experiment_ids=[experiment.experiment_id],
            filter_string=f"tags.job_id = '{run_id}'",
            max_results=1,
            output_format="list",
        )
        if earlier:
            # A later attempt of the same job. Parameters stay those of the first: MLflow takes no second value.
            self._run = mlflow.start_run(run_id=earlier[0].info.run_id)
            return
        self._run = mlflow.start_run(run_name=run_id, tags={"job_id": run_id})
        flat = {k: v for k, v in config.model_dump(mode="json").items() if not isinstance(v, dict | list)}
        mlflow.log_params(flat)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(metrics), step=step, synchronous=True)

    def publish(self, export: Path, *, step: int) -> None:
        self._mlflow.log_artifacts(str(export), artifact_path="model")
        registry = self._mlflow.MlflowClient()
        if not registry.search_registered_models(filter_string=f"name = '{self._name}'"):
            registry.create_registered_model(self._name)
        run = self._run.info
        tags = {"job_id": self._job_id, "step": str(step)}
        registry.create_model_version(self._name, f"{run.artifact_uri}/model", run_id=run.run_id, tags=tags)

    def close(self, *, succeeded: bool) -> None:
        self._mlflow.end_run("FINISHED" if succeeded else "FAILED")


class WandbTracker:
    """To Weights & Biases; WANDB_MODE=offline keeps everything on this machine."""

    def __init__(self, config: TrainConfig, run_id: str, home: Path) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            project="chatgrpo",
            group=config.experiment_name,
            id=run_id,
            resume="allow",
            config=config.model_dump(mode="json"),
            dir=str(home),
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def publish(self, export: Path, *, step: int) -> None:
        self._run.summary["published_step"] = step

    def close(self, *, succeeded: bool) -> None:
        self._run.finish(exit_code=0 if succeeded else 1)


_TRACKERS: dict[str, Callable[[TrainConfig, str, Path], Tracker]] = {"mlflow": MlflowTracker, "wandb": WandbTracker}


class Trackers:
    """All trackers of a run as one."""

    def __init__(self, config: TrainConfig, *, run_id: str, run_dir: Path, home: Path, resume_step: int) -> None:
        self._trackers: dict[str, Tracker] = {"jsonl": JsonLines(run_dir / "metrics.jsonl", resume_step=resume_step)}
        for name in config.report_to:
            try:
                self._trackers[name] = _TRACKERS[name](config, run_id, home)
            except Exception as error:
                # Whatever a tracker raises at its start, the run must not go on unrecorded.
                raise InvalidRequest(f"tracker {name} cannot start: {error}", "report_to") from error

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(metrics, step)
            except Exception as error:  # noqa: BLE001
                # Telemetry fails open: a server that went away must not end a run.
                logger.warning("tracker=%s cannot log and is left out from step=%d on: %s", name, step, error)
                del self._trackers[name]

    def publish(self, export: Path, *, step: int) -> None:
        for name, tracker in self._trackers.items():
            try:
                tracker.publish(export, step=step)
            except Exception as error:  # noqa: BLE001
                # The model is in the run folder; a registry that went away must not fail the run that made it.
                logger.warning("tracker=%s cannot register the model of step=%d: %s", name, step, error)

    def close(self, *, succeeded: bool) -> None:
        for name, tracker in self._trackers.items():
            try:
                tracker.close(succeeded=succeeded)
            except Exception as error:  # noqa: BLE001
                logger.warning("tracker=%s cannot close: %s", name, error)


def _step_of(line: str) -> int:
    try:
        value: Any = json.loads(line)
        return int(value["step"])
    except (ValueError, KeyError, TypeError):
        # A line cut by a crash: not worth keeping.
        return 1 << 62
