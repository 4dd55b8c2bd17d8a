from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chatgrpo.errors import InvalidRequest
from chatgrpo.training.config import TrainConfig
from chatgrpo.training.tracking import Trackers


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    import mlflow

    yield mlflow
    mlflow.end_run()
    mlflow.set_tracking_uri(None)


@pytest.mark.filterwarnings("ignore")
def test_a_published_model_is_a_version_in_the_registry(tmp_path: Path, mlflow: Any) -> None:
    config = TrainConfig(experiment_name="sums", report_to=["mlflow"])
    export = tmp_path / "export"
    (export / "adapter").mkdir(parents=True)
    (export / "adapter" / "weights").write_text("1 2 3")
    for job_id, step in (("J1", 8), ("J2", 4)):
        run_dir = tmp_path / job_id
        run_dir.mkdir()
        trackers = Trackers(config, run_id=job_id, run_dir=run_dir, home=tmp_path, resume_step=0)
        trackers.log({"reward": 0.5}, step)
        trackers.publish(export, step=step)
        trackers.close(succeeded=True)
        # The next run is another process, which starts without a store.
        mlflow.set_tracking_uri(None)

    registry = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    versions = sorted(registry.search_model_versions("name = 'sums'"), key=lambda v: int(v.version))
    assert [(v.tags["job_id"], v.tags["step"]) for v in versions] == [("J1", "8"), ("J2", "4")]
    run = registry.get_run(versions[0].run_id)
    assert (run.data.metrics["reward"], run.data.params["model"]) == (0.5, config.model)
    assert (Path(versions[0].source.removeprefix("file://")) / "adapter" / "weights").read_text() == "1 2 3"


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_job_is_the_same_run_and_keeps_its_first_parameters(
    tmp_path: Path, mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A store of one's own by URI.
    uri = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    config = TrainConfig(experiment_name="sums", report_to=["mlflow"])
    for step, tokens in ((1, 4096), (2, 2048)):
        changed = config.model_copy(update={"micro_batch_tokens": tokens})
        trackers = Trackers(changed, run_id="J", run_dir=tmp_path, home=tmp_path, resume_step=step - 1)
        trackers.log({"reward": step / 2}, step)
        trackers.close(succeeded=step == 2)

    store = mlflow.MlflowClient(uri)
    [run] = store.search_runs([store.get_experiment_by_name("sums").experiment_id])
    assert (run.info.status, run.data.tags["job_id"], run.data.params["micro_batch_tokens"]) == (
        "FINISHED",
        "J",
        "4096",
    )
    assert [(m.step, m.value) for m in store.get_metric_history(run.info.run_id, "reward")] == [(1, 0.5), (2, 1.0)]
    assert not (tmp_path / "mlflow.db").exists()


def test_a_tracker_that_cannot_start_fails_the_run_with_its_reason(
    tmp_path: Path, mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "carrier-pigeon://loft")
    config = TrainConfig(report_to=["mlflow"])
    with pytest.raises(InvalidRequest, match=r"tracker mlflow cannot start: .*carrier-pigeon") as refused:
        Trackers(config, run_id="J", run_dir=tmp_path, home=tmp_path, resume_step=0)
    assert refused.value.field == "report_to"


def test_a_tracker_that_cannot_log_warns_once_and_the_lines_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Mute:
        def log(self, metrics: Any, step: int) -> None:
            raise ConnectionError("no route")

    trackers = Trackers(TrainConfig(), run_id="J", run_dir=tmp_path, home=tmp_path, resume_step=0)
    trackers._trackers["mlflow"] = Mute()  # type: ignore[assignment]
    for step in (1, 2):
        trackers.log({"reward": 0.5}, step)
    assert caplog.text.count("tracker=mlflow cannot log and is left out from step=1 on: no route") == 1
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_a_registry_that_went_away_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Gone:
        def publish(self, export: Path, *, step: int) -> None:
            raise ConnectionError("no route")

    trackers = Trackers(TrainConfig(), run_id="J", run_dir=tmp_path, home=tmp_path, resume_step=0)
    trackers._trackers["mlflow"] = Gone()  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING):
        trackers.publish(tmp_path, step=3)
    assert "tracker=mlflow cannot register the model of step=3: no route" in caplog.text
