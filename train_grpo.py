"""Ray Train entry of a GRPO run.

    ray job submit --working-dir . -- python train_grpo.py --config configs/train/quickstart.yaml --set max_steps=10
    python train_grpo.py --cohort a.yaml b.yaml    (LoRA runs on one base, together in one process)
    python train_grpo.py --tune configs/tune/tiny.yaml
    python train_grpo.py --job ID        (how the platform starts a queued job, a run or a sweep)

Every worker runs `chatgrpo.training.loop.train`; Ray Train forms the process group and restarts nothing by itself. A
run continues from the newest whole checkpoint in its folder, which all workers see.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import ray
from pydantic import ValidationError
from ray.train import RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ulid import ULID

from chatgrpo.config import PlatformConfig, load_platform_config, load_yaml
from chatgrpo.errors import InvalidRequest, PlatformError
from chatgrpo.jobs.failure import facts_only
from chatgrpo.jobs.run_folder import RunFolder
from chatgrpo.jobs.seed_request import validate
from chatgrpo.jobs.sweeps.config import SweepConfig
from chatgrpo.jobs.sweeps.files import load_sweep
from chatgrpo.jobs.sweeps.job import is_sweep, sweep_of
from chatgrpo.jobs.sweeps.space import check_space
from chatgrpo.monitoring.tracing import (
    carrier,
    configure_tracing,
    environment_carrier,
    flush_tracing,
    trace_operation,
)
from chatgrpo.overrides import apply_overrides
from chatgrpo.training.allocator import allocator_environment
from chatgrpo.training.config import TrainConfig

logger = logging.getLogger("train_grpo")


def run(
    config: TrainConfig,
    *,
    run_id: str,
    platform: PlatformConfig,
    attempt: int = 1,
    callbacks: Sequence[UserCallback] = (),
) -> dict[str, Any]:
    """Trains on the current Ray cluster and returns what `result.json` holds. Raises what failed the run.

    `callbacks` are told of every report in the process that controls the workers."""
    folder = RunFolder.of(platform.runs_dir, run_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    gpus = _gpus_per_worker(config)
    resources: dict[str, float] = {"CPU": config.resources.cpus_per_worker}
    if config.resources.memory_gb_per_worker:
        resources["memory"] = config.resources.memory_gb_per_worker * 1e9
    if gpus:
        resources["GPU"] = gpus
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "run_id": run_id,
            "home": str(platform.home.expanduser().resolve()),
            "plugins": platform.plugins,
            "attempt": attempt,
            "trace": carrier(),
            "otlp_endpoint": platform.otlp_endpoint,
            "trace_sample_ratio": platform.trace_sample_ratio,
        },
        scaling_config=ScalingConfig(
            num_workers=config.num_workers, use_gpu=bool(gpus), resources_per_worker=resources
        ),
        run_config=RunConfig(name="ray", storage_path=str(folder.path), callbacks=list(callbacks)),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
    )
    result = trainer.fit()
    assert result.error is None  # fit raises
    outcome = folder.read_result()
    assert outcome is not None, "rank 0 writes the result before it returns"
    return outcome


def _worker(setup: dict[str, Any]) -> None:
    """One rank. Imports are here: the driver needs no torch."""
    import torch

    from actors.rollout_worker import RayFleet
    from chatgrpo.plugins import load_plugins
    from chatgrpo.training import ranks
    from chatgrpo.training.loop import Place, train

    config = TrainConfig.model_validate(setup["config"])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    processes = ray.train.get_context().get_local_world_size() * (1 + config.num_rollout_workers)
    torch.set_num_threads(config.resources.threads_per_worker or max(1, (os.cpu_count() or 1) // processes))
    load_plugins(setup["plugins"])
    home = Path(setup["home"])
    place = Place(run_id=setup["run_id"], home=home, run_dir=home / "runs" / setup["run_id"])
    report = _Reporter(setup["run_id"], setup["attempt"])
    configure_tracing("trainer", otlp_endpoint=setup["otlp_endpoint"], sample_ratio=setup["trace_sample_ratio"])
    # An earlier attempt that was killed a moment ago may not have noticed yet.
    alone = RunFolder(place.run_dir).held() if ranks.rank() == 0 else nullcontext()
    with alone, trace_operation("training.worker", component="trainer", parent=setup["trace"]) as span:
        span.set_attribute("rank", ranks.rank())
        outcome = train(config, place, report, partial(RayFleet, setup))
    flush_tracing()
    if ranks.rank() == 0:
        RunFolder(place.run_dir).write_result(outcome.result(place.run_dir))


class _Reporter:
    """Tells Ray Train of every step (a barrier over ranks) and, from rank 0, the platform's scheduler if it runs."""

    def __init__(self, run_id: str, attempt: int) -> None:
        self._run_id, self._attempt = run_id, attempt
        self._rank = ray.train.get_context().get_world_rank()
        self._scheduler = _find_scheduler() if self._rank == 0 else None

    def __call__(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        if self._rank == 0:
            shown = {
                k: round(metrics[k], 4) for k in ("reward", "eval_accuracy", "loss", "time/step_s") if k in metrics
            }
            logger.info("step %s/%s %s", metrics["step"], metrics["total_steps"], shown)
        if self._scheduler is not None:
            self._scheduler.report.remote(self._run_id, self._attempt, dict(metrics))
        # Ray is not told of checkpoints: it refuses to start again when one that it knew was thinned out.
        ray.train.report(dict(metrics))


def _find_scheduler() -> Any:
    """The platform's scheduler actor; None for a run that was submitted without the platform."""
    from actors import names

    try:
        return ray.get_actor(names.JOB_SCHEDULER, namespace=names.NAMESPACE)
    except ValueError:
        return None


def _gpus_per_worker(config: TrainConfig) -> float:
    if config.resources.gpus_per_worker is not None:
        return config.resources.gpus_per_worker
    return 1.0 if ray.cluster_resources().get("GPU", 0) >= config.num_workers else 0.0


def _worker_env() -> dict[str, str]:
    """Threads that wait for work sleep instead of spinning: ranks, chat replicas and rewards share the cores. What the
    environment says already comes to the workers by itself, and Ray refuses to be told twice."""
    wanted = {
        **allocator_environment(),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
    }
    return {name: value for name, value in wanted.items() if name not in os.environ}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Trains a conversational agent with GRPO on the current Ray cluster.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", help="YAML file with a training configuration (see configs/train/)")
    source.add_argument("--cohort", nargs="+", help="YAML files of LoRA runs on one base that train in one process")
    source.add_argument("--tune", help="YAML file with a sweep (see configs/tune/)")
    source.add_argument("--job", help="id of a queued job; its configuration is in the run folder")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a field, e.g. lora.r=8"
    )
    parser.add_argument("--run-id", help="name of the run folder; a run that has checkpoints there is continued")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    platform = load_platform_config()
    if options.cohort:
        return _run_cohort(options.cohort, options.set, options.run_id or str(ULID()), platform)
    configure_tracing("run", otlp_endpoint=platform.otlp_endpoint, sample_ratio=platform.trace_sample_ratio)
    run_id = options.job or options.run_id or str(ULID())
    folder = RunFolder.of(platform.runs_dir, run_id)
    attempt = int(os.environ.get("CHATGRPO_ATTEMPT", "1"))
    try:
        config: TrainConfig | SweepConfig
        if options.tune:
            config = read_sweep(options.tune, options.set)
        elif options.job and is_sweep(stored := load_yaml(folder.config)):
            config = sweep_of(stored)
        else:
            config = read_config(folder.config if options.job else Path(options.config), options.set)
        if not options.job:
            folder.prepare(config.model_dump(mode="json"))
        address = os.environ.get("CHATGRPO_RAY_ADDRESS")
        ray.init(address, ignore_reinit_error=True, runtime_env={"env_vars": _worker_env()})
        if isinstance(config, SweepConfig):
            result = _run_sweep(config, run_id, platform, attempt)
        else:
            with trace_operation("training.run", component="trainer", parent=environment_carrier(os.environ)) as span:
                span.set_attribute("job_id", run_id)
                result = run(config, run_id=run_id, platform=platform, attempt=attempt)
    except Exception as error:  # noqa: BLE001
        # Whatever went wrong, the run folder says so in one line; the log has the rest.
        cause, message = explain(error)
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_result({"status": "failed", "error": message, "cause": cause})
        logger.exception("run=%s failed", run_id) if cause != "user" else logger.error("run=%s: %s", run_id, message)
        return 1
    logger.info("run=%s %s, folder %s", run_id, result["status"], folder.path)
    return 0


def _run_cohort(paths: list[str], overrides: list[str], name: str, platform: PlatformConfig) -> int:
    """Runs `name`-0, `name`-1, ..., one for each file; the run folders say how they ended."""
    from actors.cohort_trainer import Trial, train_cohort

    try:
        configs = [read_config(Path(path), overrides) for path in paths]
        ray.init(os.environ.get("CHATGRPO_RAY_ADDRESS"), runtime_env={"env_vars": _worker_env()})
        trials = [Trial(run_id=f"{name}-{index}", config=config) for index, config in enumerate(configs)]
        results = train_cohort(trials, platform=platform, explain=explain)
    except Exception as error:  # noqa: BLE001
        cause, message = explain(error)
        logger.exception("cohort=%s failed", name) if cause != "user" else logger.error("cohort=%s: %s", name, message)
        return 1
    for run_id, result in results.items():
        logger.info("run=%s %s %s", run_id, result["status"], result["error"] or "")
    return int(any(result["status"] == "failed" for result in results.values()))


def _run_sweep(sweep: SweepConfig, sweep_id: str, platform: PlatformConfig, attempt: int) -> dict[str, Any]:
    """Many runs through Ray Tune; the scheduler is told how many have ended."""
    if sweep.share_base:
        from actors.cohort_trainer import run_shared_sweep

        shared = run_shared_sweep(sweep, sweep_id=sweep_id, platform=platform, attempt=attempt, explain=explain)
        RunFolder.of(platform.runs_dir, sweep_id).write_result(shared)
        return shared
    from actors.sweep_runner import run_sweep  # most runs need no Tune

    scheduler = _find_scheduler()

    def report(figures: Mapping[str, float]) -> None:
        if scheduler is not None:
            scheduler.report.remote(sweep_id, attempt, dict(figures))

    result = run_sweep(sweep, sweep_id=sweep_id, platform=platform, train=run, explain=explain, report=report)
    RunFolder.of(platform.runs_dir, sweep_id).write_result(result)
    return result


def read_sweep(path: str, overrides: list[str]) -> SweepConfig:
    """A sweep from a YAML file with `key=value` overrides; `train` may name a training file, relative to it."""
    data = load_sweep(Path(path), overrides)
    check_space(sweep := validate(SweepConfig, data))
    return sweep


def read_config(path: Path, overrides: list[str]) -> TrainConfig:
    """A training configuration from a YAML file with `key=value` overrides. Raises InvalidRequest naming the field."""
    data = apply_overrides(load_yaml(path), overrides, TrainConfig)
    try:
        return TrainConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidRequest(
            f"{first['msg']}, got {first.get('input')!r}", ".".join(str(p) for p in first["loc"])
        ) from error


_LOST = ("ActorDied", "WorkerCrashed", "NodeDied", "worker process has died", "RolloutWorkersLost")


def explain(error: BaseException) -> tuple[str, str]:
    """(cause, one line) of whatever ended the run. Causes: user, out_of_memory, worker_lost, error."""
    failures = [error, *getattr(error, "worker_failures", {}).values()]
    for failure in failures:
        inner = getattr(failure, "cause", None) or failure.__cause__ or failure
        for candidate in (failure, inner):
            if isinstance(candidate, PlatformError):
                return "user", str(candidate)
    text = facts_only(" ".join(str(f) for f in failures))
    last = failures[-1]
    lines = facts_only(str(last)).splitlines()
    line = f"{type(last).__name__}: {lines[-1] if lines else ''}"[:500]
    if "OutOfMemory" in text or "out of memory" in text:
        return "out_of_memory", line
    if any(sign in text for sign in _LOST):
        return "worker_lost", line
    return "error", line


if __name__ == "__main__":
    sys.exit(main())
