from __future__ import annotations

from typing import Any

from chatgrpo.config import load_yaml
from chatgrpo.jobs.amounts import Amount
from chatgrpo.jobs.autoscaling import Wish, decide
from chatgrpo.jobs.config import Autoscaling, JobsConfig
from chatgrpo.jobs.job import Job, JobState


def job(name: str, workers: int, gpus: float = 0.0, state: JobState = JobState.QUEUED, **more: Any) -> Job:
    config = {"num_workers": workers, "resources": {"cpus_per_worker": 2.0, "gpus_per_worker": gpus}}
    granted = workers if state.is_active else 0
    return Job(id=name, owner="a", config=config, submitted_at=0.0, state=state, workers=granted, **more)


QUEUE = [job("a", 2, gpus=1.0, state=JobState.RUNNING), job("b", 3), job("c", 9, state=JobState.PAUSED)]


def test_it_asks_for_what_runs_and_what_waits_in_whole_workers() -> None:
    wish = decide(QUEUE, Autoscaling(), last=Wish(), now=5.0)

    assert wish.bundles() == [{"CPU": 2.0, "GPU": 1.0}] * 2 + [{"CPU": 2.0}] * 3
    assert wish.size == Amount.of(cpus=10, gpus=2)


def test_it_never_asks_for_more_than_the_cluster_may_become() -> None:
    wish = decide(QUEUE, Autoscaling(max={"cpus": 9}), last=Wish(), now=5.0)  # type: ignore[arg-type]

    assert wish.size == Amount.of(cpus=4, gpus=2)


def test_it_gives_back_only_what_has_not_been_needed_for_a_while() -> None:
    config = Autoscaling(idle_s=60.0)
    busy = decide(QUEUE, config, last=Wish(), now=0.0)

    assert decide([], config, last=busy, now=59.0) == busy
    assert decide([], config, last=busy, now=60.0) == Wish((), 60.0)
    assert decide(QUEUE, config, last=busy, now=50.0).made_at == 50.0


def test_the_documented_policy_is_valid_and_shows_every_field() -> None:
    documented = load_yaml("configs/jobs.yaml")

    assert set(documented) == set(JobsConfig.model_fields)
    defaults = JobsConfig(**(documented | {"quotas": []}))
    assert defaults == JobsConfig()
