"""Rollout workers as Ray actors: an engine each, for rollouts that run beside the learner (see `chatgrpo.rollouts`).

The actors belong to the training worker that started them: they end when it does, however it ends.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from chatgrpo.errors import PlatformError
from chatgrpo.rollouts.fleet import Lost, Tell
from chatgrpo.rollouts.worker import Order, Report, RolloutWorker, Sampler, Weights
from chatgrpo.training.config import TrainConfig

logger = logging.getLogger(__name__)


class RolloutActor:
    """`setup`: what `train_grpo._worker` was given. Orders and weights arrive one after the other in their order, while
    a report may be waited for."""

    def __init__(self, setup: dict[str, Any], name: str) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
        self._worker = RolloutWorker(partial(_sampler, setup), name=name)

    def play(self, orders: Sequence[Order]) -> None:
        self._worker.play(orders)

    def load(self, version: int, tensors: Any) -> None:
        self._worker.load(Weights(version=version, tensors=tensors))

    @ray.method(concurrency_group="report")
    def report(self) -> Report:
        return self._worker.report()


def _sampler(setup: dict[str, Any]) -> Sampler:
    """In the worker's thread, which is the one that computes. Imports are here: the learner's side needs none."""
    import torch

    from chatgrpo.plugins import load_plugins
    from chatgrpo.training.rollout_sampler import build_sampler

    config = TrainConfig.model_validate(setup["config"])
    torch.set_num_threads(threads_of_rollout_worker(config))
    load_plugins(setup["plugins"])
    home = Path(setup["home"])
    return build_sampler(config, models_dir=home / "models", runs_dir=home / "runs")


def threads_of_rollout_worker(config: TrainConfig) -> int:
    """The machine's cores are shared by all processes of the run that may be on it."""
    processes = config.num_workers * (1 + config.num_rollout_workers)
    return config.rollout_resources.threads_per_worker or max(1, (os.cpu_count() or 1) // processes)


class RayFleet:
    """Starts actors as room for `rollout_resources` appears; one that finds none joins later."""

    def __init__(self, setup: dict[str, Any], config: TrainConfig) -> None:
        self._setup, self._timeout_s = setup, config.rollout_timeout_s
        resources = config.rollout_resources
        gpus = resources.gpus_per_worker
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0  # type: ignore[no-untyped-call]
        options: dict[str, Any] = {"num_cpus": resources.cpus_per_worker, "num_gpus": gpus, "max_restarts": 0}
        if resources.memory_gb_per_worker:
            options["memory"] = resources.memory_gb_per_worker * 1e9
        # Outside the placement group of the training workers, which has room for them alone.
        options["scheduling_strategy"] = "DEFAULT"
        actor: Any = ray.remote(concurrency_groups={"report": 1})  # type: ignore[call-overload]
        self._actor: Any = actor(RolloutActor).options(**options)

    def share(self, weights: Weights) -> Weights:
        return Weights(version=weights.version, tensors=ray.put(weights.tensors))

    def start(self, name: str, tell: Tell) -> RayWorker:
        return RayWorker(self._actor.remote(self._setup, name), name, tell, timeout_s=self._timeout_s)


class RayWorker:
    """The learner's handle of an actor. A thread waits for its reports; silence beyond `timeout_s` counts as its end,
    except before the first report, when it may be waiting for room."""

    def __init__(self, actor: Any, name: str, tell: Tell, *, timeout_s: float) -> None:
        self._actor, self._name, self._tell, self._timeout_s = actor, name, tell, timeout_s
        self._closed = False
        threading.Thread(target=self._listen, name=f"listen-{name}", daemon=True).start()

    def play(self, orders: Sequence[Order]) -> None:
        self._actor.play.remote(list(orders))

    def load(self, weights: Weights) -> None:
        self._actor.load.remote(weights.version, weights.tensors)

    def close(self) -> None:
        self._closed = True
        ray.kill(self._actor)

    def _listen(self) -> None:
        timeout_s = None
        while not self._closed:
            try:
                report = ray.get(self._actor.report.remote(), timeout=timeout_s)
            except (RayError, GetTimeoutError) as error:
                if not self._closed:
                    self._tell(self._name, lost(error, timeout_s))
                return
            self._tell(self._name, report)
            timeout_s = self._timeout_s


def lost(error: Exception, timeout_s: float | None) -> Lost:
    """What the end of an actor means: a mistake of the user's would end any other worker as well."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        fault = cause if isinstance(cause, PlatformError) else None
        return Lost(f"{type(cause).__name__}: {cause}", fault)
    if isinstance(error, GetTimeoutError):
        return Lost(f"silent for {timeout_s:g} s")
    if isinstance(error, RayActorError):
        return Lost("its process died")
    return Lost(f"{type(error).__name__}: {error}")
