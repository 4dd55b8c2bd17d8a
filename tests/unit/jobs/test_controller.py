from __future__ import annotations

from collections.abc import Mapping, Sequence

from chatgrpo.jobs.amounts import Amount, Node
from chatgrpo.jobs.config import JobsConfig
from chatgrpo.jobs.controller import AskStop, Decision, Facts, Kill, Launch, Run, RunStatus, step
from chatgrpo.jobs.job import Event, Job, JobState, StopReason
from chatgrpo.training.config import TrainConfig

CONFIG = TrainConfig().model_dump(mode="json") | {
    "resources": {"cpus_per_worker": 1.0, "gpus_per_worker": 0.0, "memory_gb_per_worker": None}
}
S = JobState


def job(job_id: str = "a", **fields: object) -> Job:
    base = {"id": job_id, "owner": "ann", "config": CONFIG, "submitted_at": 0.0}
    return Job(**(base | fields))  # type: ignore[arg-type]


def decide(
    jobs: Sequence[Job], runs: Sequence[Run] = (), *, cpus: float = 2.0, now: float = 100.0, **config: object
) -> list[Decision]:
    node = Node("n", Amount.of(cpus=4), Amount.of(cpus=cpus))
    by_id: Mapping[str, Run] = {run.submission_id: run for run in runs}
    facts = Facts(now=now, jobs=jobs, runs=by_id, nodes=[node], config=JobsConfig(**config))  # type: ignore[arg-type]
    return step(facts).decisions


def moves(decisions: Sequence[Decision]) -> list[tuple[str, str]]:
    return [(d.job.id, d.job.state.value) for d in decisions if isinstance(d, Event)]


def effects(decisions: Sequence[Decision]) -> list[Decision]:
    return [d for d in decisions if not isinstance(d, Event)]


def running(**fields: object) -> Job:
    return job(**({"state": S.RUNNING, "attempt": 1, "workers": 1, "state_since": 50.0} | fields))


def test_the_queue_starts_what_fits_and_launches_it() -> None:
    decisions = decide([job("a"), job("b"), job("c")])

    assert moves(decisions) == [("a", "starting"), ("b", "starting")]
    assert [d.job.submission_id for d in decisions if isinstance(d, Launch)] == ["a-1", "b-1"]


def test_a_starting_job_without_a_run_is_launched_again_and_with_one_is_not() -> None:
    starting = job(state=S.STARTING, attempt=1, workers=1, state_since=99.0)

    assert effects(decide([starting])) == [Launch(starting)]
    assert decide([starting], [Run(submission_id="a-1", status=RunStatus.PENDING)]) == []


def test_a_new_run_waits_until_the_old_one_of_the_same_job_is_gone() -> None:
    starting = job(state=S.STARTING, attempt=2, workers=1, state_since=99.0)

    decisions = decide([starting], [Run(submission_id="a-1", status=RunStatus.RUNNING)])

    assert decisions == [Kill("a-1", "its job no longer runs")]


def test_a_run_that_no_job_claims_is_killed() -> None:
    assert decide([], [Run(submission_id="x-1", status=RunStatus.RUNNING)]) == [Kill("x-1", "its job no longer runs")]
    assert decide([], [Run(submission_id="x-1", status=RunStatus.STOPPED)]) == []


def test_success_needs_a_result() -> None:
    good = Run(submission_id="a-1", status=RunStatus.SUCCEEDED, result={"status": "succeeded"})
    mute = Run(submission_id="a-1", status=RunStatus.SUCCEEDED)

    assert moves(decide([running()], [good])) == [("a", "succeeded")]
    assert moves(decide([running()], [mute])) == [("a", "failed")]
    crashed_after = Run(submission_id="a-1", status=RunStatus.FAILED, exit_code=-6, result={"status": "succeeded"})
    assert moves(decide([running()], [crashed_after])) == [("a", "succeeded")]


def test_a_user_error_is_never_retried_and_keeps_its_words() -> None:
    run = Run(
        submission_id="a-1", status=RunStatus.FAILED, exit_code=1, log="Traceback ...\nValueError: x.jsonl:3: bad\n"
    )

    decisions = decide([running()], [run])

    assert moves(decisions) == [("a", "failed")]
    assert isinstance(decisions[0], Event)
    assert decisions[0].job.error == "ValueError: x.jsonl:3: bad"


def test_a_killed_run_goes_back_to_the_queue_until_its_budget_is_used_up() -> None:
    run = Run(submission_id="a-1", status=RunStatus.FAILED, exit_code=-9)

    first = decide([running()], [run])
    last = decide([running(retries={"worker_lost": 3})], [run])

    assert moves(first) == [("a", "queued")]
    assert isinstance(first[0], Event)
    assert first[0].job.retries == {"worker_lost": 1}
    assert 101.0 <= first[0].job.not_before <= 102.0
    assert moves(last) == [("a", "failed")]


def test_out_of_memory_halves_the_micro_batch() -> None:
    run = Run(
        submission_id="a-1", status=RunStatus.FAILED, exit_code=1, log="torch.OutOfMemoryError: CUDA out of memory"
    )

    decisions = decide([running()], [run])

    assert isinstance(decisions[0], Event)
    assert decisions[0].job.overrides == {"micro_batch_tokens": 2048}


def test_a_run_that_vanished_with_its_cluster_is_started_again() -> None:
    decisions = decide([running()], [])

    assert moves(decisions) == [("a", "queued")]
    assert isinstance(decisions[0], Event)
    assert decisions[0].job.retries == {"node_lost": 1}


def test_back_off_is_waited_for() -> None:
    waiting = job(not_before=150.0)

    assert decide([waiting], now=149.0) == []
    assert moves(decide([waiting], now=150.0)) == [("a", "starting")]


def test_a_stopped_run_is_paused_or_queued_again_at_its_checkpoint() -> None:
    run = Run(submission_id="a-1", status=RunStatus.SUCCEEDED, result={"status": "stopped"})
    paused = running(state=S.CHECKPOINTING, stop_reason=StopReason.PAUSE)
    preempted = running(state=S.CHECKPOINTING, stop_reason=StopReason.PREEMPT)

    assert moves(decide([paused], [run])) == [("a", "paused")]
    assert moves(decide([preempted], [run], cpus=0.0)) == [("a", "preempted"), ("a", "queued")]


def test_a_run_that_misses_its_checkpoint_is_killed_after_the_grace() -> None:
    stopping = running(state=S.CHECKPOINTING, stop_reason=StopReason.PREEMPT)
    run = Run(submission_id="a-1", status=RunStatus.RUNNING)

    assert decide([stopping], [run], now=100.0) == [AskStop(stopping)]
    late = decide([stopping], [run], now=700.0)
    assert late == [AskStop(stopping), Kill("a-1", "did not reach a checkpoint in time")]


def test_a_run_that_hangs_past_its_limit_fails() -> None:
    config = CONFIG | {"max_runtime_hours": 1.0}
    run = Run(submission_id="a-1", status=RunStatus.RUNNING)

    assert decide([running(config=config, state_since=0.0)], [run], now=3899.0) == []
    late = decide([running(config=config, state_since=0.0)], [run], now=3901.0)
    assert moves(late) == [("a", "failed")]
    assert effects(late) == [Kill("a-1", "its job no longer runs")]


def test_a_run_whose_hours_are_used_up_stops_at_its_checkpoint_and_waits_for_the_window() -> None:
    quotas = [{"path": "lab", "cpu_hours": 2.0}]
    mine = running(owner="lab/ann", state_since=0.0, cpu_seconds=3600.0)
    other = running(id="b", owner="lab/bob", state_since=3000.0)
    foreign = running(id="c", owner="shop", state_since=0.0)
    runs = [Run(submission_id=f"{name}-1", status=RunStatus.RUNNING) for name in "abc"]

    assert decide([mine, other, foreign], runs, now=3299.0, quotas=quotas) == []
    # An hour before, 3300 s now, and 300 s of another of the same tenant.
    over = decide([mine, other, foreign], runs, now=3300.0, quotas=quotas)
    assert moves(over) == [("a", "checkpointing"), ("b", "checkpointing")]
    assert isinstance(over[0], Event)
    assert over[0].cause == "preempt: the hours of 'lab' are used up"

    waiting = job(owner="lab/ann", cpu_seconds=7200.0)
    node = Node("n", Amount.of(cpus=4), Amount.of(cpus=4))
    facts = Facts(now=9e9, jobs=[waiting], runs={}, nodes=[node], config=JobsConfig(quotas=quotas))  # type: ignore[arg-type]
    assert step(facts).waits["a"].reason == "the hours of 'lab' are used up"


def test_a_run_that_ended_early_says_why_and_what_it_published() -> None:
    result = {"status": "succeeded", "reason": "diverged: KL 0.9 exceeds 0.5 at step 12", "published_step": 8}
    [event] = decide([running()], [Run(submission_id="a-1", status=RunStatus.SUCCEEDED, result=result)])

    assert isinstance(event, Event)
    assert event.cause == "run ended early: diverged: KL 0.9 exceeds 0.5 at step 12"
    assert (event.job.end_reason, event.job.published_step) == ("diverged: KL 0.9 exceeds 0.5 at step 12", 8)
