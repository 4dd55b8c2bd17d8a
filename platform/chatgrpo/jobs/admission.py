"""What is refused at submit because it can never work, and what the platform chooses where the request is silent."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chatgrpo.environments.config import DatasetConfig, DialogueConfig, EnvironmentConfig, ToolsConfig
from chatgrpo.errors import InvalidRequest
from chatgrpo.jobs.amounts import Amount, Node, Request
from chatgrpo.jobs.config import JobsConfig, Quota
from chatgrpo.training.config import TrainConfig


def admit(
    config: TrainConfig,
    *,
    owner: str,
    nodes: Sequence[Node],
    jobs_config: JobsConfig,
    runs_dir: Path,
    preflight: Callable[[TrainConfig], None] | None = None,
) -> dict[str, Any]:
    """The configuration as it will be stored, as JSON: resources completed, paths absolute.

    `nodes`: the cluster as it is now. `preflight` looks up the names of data sets and plug-ins. Raises InvalidRequest
    with field, reason and way out."""
    completed = complete(config, has_gpus=any(node.has.gpu for node in nodes))
    check_room(completed, nodes, jobs_config)
    check_quotas(completed, owner, jobs_config.quotas)
    check_packages(config)
    check_model(config, runs_dir)
    if preflight:
        preflight(config)
    return completed


def complete(config: TrainConfig, *, has_gpus: bool) -> dict[str, Any]:
    """`config` as JSON with the platform's choices filled in, and with paths that hold in any working directory."""
    environment = _absolute(config.environment)
    update: dict[str, Any] = {"environment": environment, "rollout_workers": config.num_rollout_workers}
    for name in ("resources", "rollout_resources")[: 2 if config.num_rollout_workers else 1]:
        resources = getattr(config, name)
        gpus = resources.gpus_per_worker
        chosen = (1.0 if has_gpus else 0.0) if gpus is None else gpus
        update[name] = resources.model_copy(update={"gpus_per_worker": chosen})
    if Path(config.model).expanduser().is_dir():
        update["model"] = str(Path(config.model).expanduser().resolve())
    if isinstance(config.deepspeed, str):
        update["deepspeed"] = _existing(config.deepspeed, "deepspeed")
    return config.model_copy(update=update).model_dump(mode="json")


def check_room(config: dict[str, Any], nodes: Sequence[Node], jobs_config: JobsConfig) -> None:
    """Refuses a gang that the cluster at its largest could not hold, even empty."""
    request = Request.of_config(config)
    autoscaling = jobs_config.autoscaling
    if autoscaling.mode == "on":
        largest = autoscaling.max.as_limit()
        if request.smallest.fits(largest):
            return
        raise _too_large(request, largest, "the cluster can grow to")
    room = sum(request.per_worker.multiples_in(node.has) for node in nodes)
    if room < request.least:
        has = Amount(*(sum(part) for part in zip(*(node.has for node in nodes), strict=True))) if nodes else Amount()
        raise _too_large(request, has, "the cluster has")


def check_quotas(config: dict[str, Any], owner: str, quotas: Sequence[Quota]) -> None:
    """Refuses what a hard quota of the owner, or of a path above, never allows."""
    request = Request.of_config(config)
    for quota in quotas:
        if owner != quota.path and not owner.startswith(quota.path + "/"):
            continue
        if not request.smallest.fits(quota.limit.as_limit()):
            raise InvalidRequest(
                f"needs {request.smallest}, above the quota of {quota.path!r}; ask for less or have it raised",
                "resources",
            )
        if quota.max_jobs == 0:
            raise InvalidRequest(f"the quota of {quota.path!r} allows no jobs (max_jobs: 0)")


def check_packages(config: TrainConfig) -> None:
    for tracker in config.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise InvalidRequest(
                f"{tracker} is not installed here; run `pip install chatgrpo[{tracker}]`, or turn it off", "report_to"
            )
    if config.deepspeed is not None and importlib.util.find_spec("deepspeed") is None:
        raise InvalidRequest(
            "deepspeed is not installed here; run `pip install deepspeed`, or leave it out", "deepspeed"
        )


def check_model(config: TrainConfig, runs_dir: Path) -> None:
    from chatgrpo.inference.models import check_available

    check_available(config.model, runs_dir=runs_dir)


def _absolute(environment: EnvironmentConfig) -> EnvironmentConfig:
    if isinstance(environment, ToolsConfig):
        return environment.model_copy(update={"tasks": _absolute(environment.tasks)})
    if isinstance(environment, DatasetConfig | DialogueConfig):
        paths = {
            name: [_existing(path, f"environment.{name}") for path in getattr(environment, name)]
            for name in ("paths", "eval_paths")
        }
        return environment.model_copy(update=paths)
    return environment


def _existing(path: str, field: str) -> str:
    found = Path(path).expanduser().resolve()
    if not found.exists():
        raise InvalidRequest(f"{path} does not exist on the server; give a file or folder that does", field)
    return str(found)


def _too_large(request: Request, room: Amount, what: str) -> InvalidRequest:
    asked = f"{request.least} x ({request.per_worker})"
    if request.per_worker.gpu and not room.gpu:
        return InvalidRequest(
            f"needs {asked} but {what} no GPU; write 0 (gpu_count or resources.gpus_per_worker) to train on CPU",
            "resources.gpus_per_worker",
        )
    return InvalidRequest(
        f"needs {asked} but {what} {room}; ask for fewer or smaller workers, or add nodes", "resources"
    )
