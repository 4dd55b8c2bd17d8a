from __future__ import annotations

import pytest

from chatgrpo.errors import Conflict, NotFound
from chatgrpo.jobs.job import TRANSITIONS, Job, JobState, Progress, created, move
from chatgrpo.jobs.store import JobStore
from chatgrpo.training.config import TrainConfig

CONFIG = TrainConfig().model_dump(mode="json")


def job(**fields: object) -> Job:
    return Job(**({"id": "j1", "owner": "ann", "config": CONFIG, "submitted_at": 10.0, "state_since": 10.0} | fields))  # type: ignore[arg-type]


def test_every_state_has_its_transitions_and_the_final_one_has_none() -> None:
    assert set(TRANSITIONS) == set(JobState)
    assert TRANSITIONS[JobState.SUCCEEDED] == frozenset()
    assert {s for s in JobState if JobState.QUEUED in TRANSITIONS[s]} == {
        "starting",
        "running",
        "checkpointing",
        "preempted",
        "paused",
        "failed",
        "cancelled",
    }


def test_an_illegal_move_names_what_would_be_legal() -> None:
    with pytest.raises(Conflict, match=r"job j1 is succeeded: it cannot become queued \(possible: none, it is final\)"):
        move(job(state=JobState.SUCCEEDED), JobState.QUEUED, now=11.0, cause="again")


def test_a_run_is_charged_for_the_time_it_held_its_workers() -> None:
    config = CONFIG | {"resources": {"cpus_per_worker": 2.0, "gpus_per_worker": 0.5}}
    running = job(config=config, state=JobState.RUNNING, workers=3, state_since=100.0)

    ended = move(running, JobState.SUCCEEDED, now=110.0, cause="done").job

    assert (ended.cpu_seconds, ended.gpu_seconds) == (60.0, 15.0)
    assert (ended.workers, ended.ended_at) == (0, 110.0)


def test_records_survive_json_and_the_store(tmp_path: object) -> None:
    store = JobStore(":memory:")
    queued = job(progress=Progress(step=2, total_steps=4, metrics={"reward": 0.5}, eta_s=3.0))
    started = move(queued, JobState.STARTING, now=20.0, cause="attempt 1", attempt=1, workers=1)
    store.append([created(queued), started])

    assert store.get("j1", owner="ann") == started.job
    assert [(e["from"], e["to"], e["at"]) for e in store.events("j1")] == [
        (None, "queued", 10.0),
        ("queued", "starting", 20.0),
    ]
    with pytest.raises(NotFound):
        store.get("j1", owner="bob")


def test_a_transaction_that_fails_leaves_nothing() -> None:
    store = JobStore(":memory:")
    broken = job(id="j2", config={"x": object()})

    with pytest.raises(TypeError):
        store.append([created(job()), created(broken)])

    assert store.list() == []


def test_the_event_log_alone_rebuilds_every_job() -> None:
    store = JobStore(":memory:")
    first = created(job())
    second = move(first.job, JobState.STARTING, now=11.0, cause="a", attempt=1, workers=1)
    third = move(second.job, JobState.FAILED, now=12.0, cause="b", error="broken")
    store.append([first, second, third, created(job(id="j2"))])

    assert store.replay() == {"j1": third.job, "j2": job(id="j2")}
    assert store.counts() == {"failed": 1, "queued": 1}
    assert store.unfinished() == (job(id="j2"),)
