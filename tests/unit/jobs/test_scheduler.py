"""The scheduler with a fake Ray: what it loses or doubles when it dies anywhere. (Answer: nothing.)"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatgrpo.errors import Conflict, InvalidRequest, NotFound, RateLimited
from chatgrpo.jobs.amounts import Amount, Node, Request
from chatgrpo.jobs.config import JobsConfig
from chatgrpo.jobs.controller import Run, RunStatus
from chatgrpo.jobs.job import Job, JobState, created
from chatgrpo.jobs.run_folder import RunFolder
from chatgrpo.jobs.scheduler import Scheduler
from chatgrpo.jobs.store import JobStore
from chatgrpo.training.config import TrainConfig
from tests.fakes import FakeClock

CONFIG = TrainConfig(model="tiny").model_dump(mode="json") | {
    "resources": {"cpus_per_worker": 1.0, "gpus_per_worker": 0.0, "memory_gb_per_worker": None}
}


class Crash(BaseException):
    """The scheduler's process dies here."""


class FakeRay:
    """Launcher and cluster of two CPUs. Keeps what was launched; a test says how runs end."""

    def __init__(self) -> None:
        self.live: dict[str, Run] = {}
        self.launched: list[str] = []
        self.workers: dict[str, int] = {}
        self.crash_at_launch = ""

    def launch(self, job: Job) -> None:
        if self.crash_at_launch == "before":
            raise Crash
        if job.submission_id not in self.live:
            assert not any(r.startswith(job.id + "-") for r in self.alive()), "one run of a job at a time"
            self.launched.append(job.submission_id)
            self.workers[job.submission_id] = job.workers
            self.live[job.submission_id] = Run(submission_id=job.submission_id, status=RunStatus.RUNNING)
        if self.crash_at_launch == "after":
            raise Crash

    def kill(self, submission_id: str) -> None:
        self.end(submission_id, RunStatus.STOPPED)

    def runs(self) -> dict[str, Run]:
        return dict(self.live)

    def log(self, submission_id: str) -> str:
        return f"log of {submission_id}\n"

    def nodes(self) -> list[Node]:
        used = sum(self.workers[run] for run in self.alive())
        return [Node("n", Amount.of(cpus=2), Amount.of(cpus=max(0, 2 - used)))]

    def ask(self, bundles: list[dict[str, Any]]) -> None:
        raise AssertionError("autoscaling is off")

    def alive(self) -> list[str]:
        return [i for i, run in self.live.items() if not run.status.has_ended]

    def end(self, submission_id: str, status: RunStatus, result: str | None = None, exit_code: int = 0) -> None:
        said = {"status": result} if result else None
        self.live[submission_id] = Run(submission_id=submission_id, status=status, result=said, exit_code=exit_code)


def scheduler(store: JobStore, ray: FakeRay, clock: FakeClock, runs_dir: Path, **config: Any) -> Scheduler:
    return Scheduler(
        store=store, launcher=ray, cluster=ray, runs_dir=runs_dir, config=JobsConfig(**config), clock=clock
    )


ACTIONS = (
    "tick",
    "restart",
    "crash before",
    "crash after",
    "succeed",
    "die",
    "vanish",
    "cancel",
    "pause",
    "resume",
    "report",
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 3)), max_size=40))
def test_no_job_is_lost_or_run_twice_wherever_the_scheduler_dies(actions: list[tuple[str, int]]) -> None:
    asyncio.run(_live_through(actions))


async def _live_through(actions: list[tuple[str, int]]) -> None:
    store, ray, clock = JobStore(":memory:"), FakeRay(), FakeClock()
    ids = [f"J{i}" for i in range(4)]
    for i in ids:
        store.append(
            [created(Job(id=i, owner="ann", config=CONFIG, submitted_at=clock.now(), state_since=clock.now()))]
        )
    alive = scheduler(store, ray, clock, Path("/nowhere"))
    for action, which in actions:
        clock.advance(1.0)
        alive = await _do(action, ids[which], alive, store, ray, clock)
    ray.crash_at_launch = ""
    for _ in range(200):
        clock.advance(400.0)
        for job in store.list(state=JobState.PAUSED):
            alive.resume(job.id, owner=None)
        await alive.tick()
        for run in ray.alive():
            ray.end(run, RunStatus.SUCCEEDED, "succeeded")
        if not store.unfinished():
            break

    assert all(store.get(i).state.is_terminal for i in ids), "nothing is lost"
    assert len(ray.launched) == len(set(ray.launched)), "nothing runs twice"
    assert store.replay() == {i: store.get(i) for i in ids}


async def _do(action: str, job_id: str, alive: Scheduler, store: JobStore, ray: FakeRay, clock: FakeClock) -> Scheduler:
    runs = [run for run in ray.alive() if run.startswith(job_id)]
    match action:
        case "crash before" | "crash after":
            ray.crash_at_launch = action.split()[1]
            try:
                await alive.tick()
            except Crash:
                alive = scheduler(store, ray, clock, Path("/nowhere"))
            ray.crash_at_launch = ""
        case "restart":
            return scheduler(store, ray, clock, Path("/nowhere"))
        case "tick":
            await alive.tick()
        case "succeed" if runs:
            ray.end(runs[0], RunStatus.SUCCEEDED, "succeeded")
        case "die" if runs:
            ray.end(runs[0], RunStatus.FAILED, exit_code=-9)
        case "vanish" if runs:
            # Ray lost it with its cluster: to start it again is not to run it twice.
            del ray.live[runs[0]]
            ray.launched.remove(runs[0])
        case "report":
            alive.report(job_id, store.get(job_id).attempt, {})
        case "cancel" | "pause" | "resume":
            with suppress(Conflict):
                getattr(alive, action)(job_id, owner=None)
    return alive


async def test_one_launch_that_fails_does_not_hold_up_the_others(tmp_path: Path) -> None:
    class HalfDeaf(FakeRay):
        def launch(self, job: Job) -> None:
            if job.id == "J0":
                raise RuntimeError("no answer")
            super().launch(job)

    store, ray, clock = JobStore(":memory:"), HalfDeaf(), FakeClock()
    s = scheduler(store, ray, clock, tmp_path)
    for i in range(2):
        await s.submit(f"J{i}", {"model": "tiny"}, owner="ann")

    await s.tick()
    clock.advance(301.0)
    await s.tick()

    assert ray.launched == ["J1-1"]
    assert (store.get("J0").state, store.get("J0").retries) == (JobState.QUEUED, {"launch_failed": 1})


async def test_reports_make_progress_and_stale_ones_do_not(tmp_path: Path) -> None:
    store, ray, clock = JobStore(":memory:"), FakeRay(), FakeClock()
    s = scheduler(store, ray, clock, tmp_path)
    await s.submit("J", TrainConfig(model="tiny").model_dump(), owner="ann")
    await s.tick()

    s.report("J", 1, {"step": 0, "total_steps": 10})
    s.report("J", 1, {"step": 4, "total_steps": 10, "eta_s": 6.5, "reward": 0.25, "note": "text is left out"})
    s.report("J", 7, {"step": 9, "total_steps": 10})
    view = await s.view("J", owner="ann")

    assert view["status"] == "running"
    assert view["progress"] == {"progress_percent": 40.0, "current_step": 4, "total_steps": 10, "eta_s": 6.5}
    assert view["metrics"] == {"reward": 0.25}
    with pytest.raises(NotFound):
        await s.view("J", owner="bob")


async def test_submitting_the_same_id_again_is_the_same_job(tmp_path: Path) -> None:
    s = scheduler(JobStore(":memory:"), FakeRay(), FakeClock(), tmp_path, max_queued_per_owner=1)
    config = TrainConfig(model="tiny").model_dump()

    first = await s.submit("J", config, owner="ann")
    again = await s.submit("J", config, owner="ann")

    assert first["job_id"] == again["job_id"]
    assert [e["to"] for e in s.events("J", owner="ann")] == ["queued"]
    with pytest.raises(RateLimited):
        await s.submit("K", config, owner="ann")


async def test_a_pending_job_says_why_and_what_would_unblock_it(tmp_path: Path) -> None:
    s = scheduler(JobStore(":memory:"), FakeRay(), FakeClock(), tmp_path)
    for i in range(3):
        await s.submit(f"J{i}", TrainConfig(model="tiny").model_dump(), owner="ann")
    await s.tick()

    assert (await s.view("J2", owner="ann"))["pending"] == {
        "position": 1,
        "reason": "needs 1 x (1 CPU) at once; 0 such workers fit now",
        "unblocked_by": "a running job ends, or the cluster grows",
    }
    assert (await s.view("J0", owner="ann"))["pending"] is None


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"num_workers": 4}, "resources", "needs 4 x \\(1 CPU\\) but the cluster has 2 CPU"),
        ({"resources": {"gpus_per_worker": 1}}, "resources.gpus_per_worker", "no GPU; write 0"),
        ({"model": "/no/such/folder"}, "model", "does not exist"),
        ({"environment": {"type": "dataset", "paths": ["/no/file.jsonl"]}}, "environment.paths", "does not exist"),
        ({"report_to": ["wandb"]}, "report_to", "pip install chatgrpo\\[wandb\\]"),
        ({"num_generations": 1}, "num_generations", "greater than or equal to 2"),
    ],
)
async def test_what_can_never_work_is_refused_at_submit(
    tmp_path: Path, change: dict[str, Any], field: str, says: str
) -> None:
    s = scheduler(JobStore(":memory:"), FakeRay(), FakeClock(), tmp_path)
    config = {"model": "tiny", **change}

    with pytest.raises(InvalidRequest, match=says) as refused:
        await s.submit("J", config, owner="ann")

    assert refused.value.field == field
    assert s.list(owner=None) == []


@pytest.mark.parametrize(("mode", "asked"), [("off", []), ("dry_run", []), ("on", [3, 1])])
async def test_the_queue_says_what_it_asks_the_cluster_for_and_asks_only_when_told(
    tmp_path: Path, mode: str, asked: list[int]
) -> None:
    class Growing(FakeRay):
        def ask(self, bundles: list[dict[str, Any]]) -> None:
            sizes.append(len(bundles))

    sizes: list[int] = []
    ray, clock = Growing(), FakeClock()
    autoscaling = {"mode": mode, "max": {"cpus": 8}, "idle_s": 60.0}
    s = scheduler(JobStore(":memory:"), ray, clock, tmp_path, autoscaling=autoscaling)
    for name, workers in (("J0", 1), ("J1", 2)):
        await s.submit(name, {"model": "tiny", "num_workers": workers}, owner="ann")
    await s.tick()
    wanted = 0 if mode == "off" else 3
    assert s.queue()["autoscaling"] == {"mode": mode, "asks_for": [{"CPU": 1.0}] * wanted}
    s.cancel("J1", owner="ann")
    clock.advance(61.0)
    await s.tick()
    assert sizes == asked


async def test_a_hard_quota_refuses_what_it_never_allows(tmp_path: Path) -> None:
    quotas = [{"path": "lab", "limit": {"cpus": 1}}]
    s = scheduler(JobStore(":memory:"), FakeRay(), FakeClock(), tmp_path, quotas=quotas)

    with pytest.raises(InvalidRequest, match="above the quota of 'lab'"):
        await s.submit("J", {"model": "tiny", "num_workers": 2}, owner="lab/ann")


async def test_a_preempted_run_is_asked_to_stop_and_goes_on_later(tmp_path: Path) -> None:
    quotas = [{"path": "lab", "guarantee": {"cpus": 2}}]
    store, ray, clock = JobStore(":memory:"), FakeRay(), FakeClock()
    s = scheduler(store, ray, clock, tmp_path, quotas=quotas)
    await s.submit("J0", {"model": "tiny", "num_workers": 2}, owner="other")
    await s.tick()
    s.report("J0", 1, {"step": 1, "total_steps": 4})
    folder = RunFolder.of(tmp_path, "J0")
    folder.prepare({})
    await s.submit("J1", {"model": "tiny", "num_workers": 2}, owner="lab")

    await s.tick()
    assert folder.read_stop() == "preempt"
    assert store.get("J0").state is JobState.CHECKPOINTING
    ray.end("J0-1", RunStatus.SUCCEEDED, "stopped")
    await s.tick()
    assert (store.get("J0").state, store.get("J1").state) == (JobState.QUEUED, JobState.STARTING)
    s.report("J1", 1, {"step": 1, "total_steps": 1})
    ray.end("J1-1", RunStatus.SUCCEEDED, "succeeded")
    clock.advance(10.0)
    await s.tick()
    await s.tick()

    assert ray.launched == ["J0-1", "J1-1", "J0-2"]
    assert [e["to"] for e in store.events("J0")][3:6] == ["checkpointing", "preempted", "queued"]


def test_worker_counts_between_the_bounds_share_the_tasks_of_a_step_equally() -> None:
    config = TrainConfig(num_workers=8, min_workers=2, prompts_per_step=8).model_dump(mode="json")

    assert Request.of_config(config).counts() == [8, 4, 2]


SWEEP: dict[str, Any] = {
    "train": {"model": "tiny", "max_steps": 8, "eval_steps": 2},
    "space": {"learning_rate": {"type": "choice", "values": [1e-4, 1e-3]}},
}


async def test_a_sweep_queues_like_a_job_and_goes_with_its_trials(tmp_path: Path) -> None:
    ray, clock = FakeRay(), FakeClock()
    s = scheduler(JobStore(":memory:"), ray, clock, tmp_path)
    await s.submit("S", {"sweep": SWEEP}, owner="ann")
    clock.advance(1.0)
    await s.submit("J", {"model": "tiny"}, owner="ann")
    await s.tick()

    # Two trials at once on two CPUs: the job after it waits.
    assert (ray.launched, ray.workers["S-1"]) == (["S-1"], 2)
    assert [row["job_id"] for row in s.list(owner="ann", sweeps_only=True)] == ["S"]
    assert (await s.sweep("S", owner="ann"))["trials"] == []
    with pytest.raises(NotFound, match="is no sweep"):
        await s.sweep("J", owner="ann")
    for name in ("S", "S-0", "J"):
        (tmp_path / name).mkdir()
    s.cancel("S", owner="ann")
    await s.delete("S", owner="ann")
    assert [(tmp_path / name).exists() for name in ("S", "S-0", "J")] == [False, False, True]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_concurrent": 3}, "needs 3 x"),
        ({"space": {"lora.r": {"type": "choice", "values": [8, "x"]}}}, "'x' is refused"),
        ({"train": {**SWEEP["train"], "model": "/no/such/folder"}}, "does not exist"),
    ],
)
async def test_a_sweep_that_can_never_work_is_refused_at_submit(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    s = scheduler(JobStore(":memory:"), FakeRay(), FakeClock(), tmp_path)

    with pytest.raises(InvalidRequest, match=says):
        await s.submit("S", {"sweep": SWEEP | change}, owner="ann")
