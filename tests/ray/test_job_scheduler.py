"""The scheduler actor on a real local cluster, with a small program in place of the training."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chatgrpo.config import PlatformConfig
from chatgrpo.errors import InvalidRequest, NotFound
from chatgrpo.jobs.config import JobsConfig

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

# Reports as a run does, then does what `experiment_name` says. Every start leaves a line, so that doubles show.
PROGRAM = """
import os, sys, time, json
from pathlib import Path
import ray, yaml
job_id = sys.argv[sys.argv.index("--job") + 1]
folder = Path(os.environ["CHATGRPO_HOME"]) / "runs" / job_id
config = yaml.safe_load((folder / "config.yaml").read_text())
attempt = int(os.environ["CHATGRPO_ATTEMPT"])
with (folder / "starts").open("a") as starts:
    starts.write(f"{attempt}\\n")
ray.init(namespace="chatgrpo")
def report(step):
    scheduler = ray.get_actor("job_scheduler", namespace="chatgrpo")
    scheduler.report.remote(job_id, attempt, {"step": step, "total_steps": 4, "eta_s": 1.0, "reward": step / 4})
def finish(status, **more):
    (folder / "result.json").write_text(json.dumps({"status": status, "attempt": attempt, **more}))
report(0)
print("hello from", config["experiment_name"], flush=True)
if config["experiment_name"] == "breaks":
    finish("failed", error="data.jsonl:3: not JSON", cause="user")
    sys.exit(1)
while config["experiment_name"] == "waits" and not (folder / "go").exists():
    if (folder / "stop").exists():
        finish("stopped")
        sys.exit(0)
    time.sleep(0.05)
if config["experiment_name"] == "dies once" and attempt == 1:
    os.kill(os.getpid(), 9)
with (folder / "metrics.jsonl").open("a") as metrics:
    for step in range(1, 5):
        report(step)
        metrics.write(json.dumps({"step": step, "total_steps": 4, "reward": step / 4}) + "\\n")
finish("succeeded", export=str(folder / "export"))
"""


@pytest.fixture(scope="module")
def platform(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> PlatformConfig:
    return PlatformConfig(home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def scheduler(platform: PlatformConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import ray

    from actors.job_scheduler import start_job_scheduler

    code = tmp_path_factory.mktemp("code")
    (code / "train_grpo.py").write_text(PROGRAM)
    config = JobsConfig(tick_s=0.2, retries={"base_delay_s": 0.1})
    handle = start_job_scheduler(platform, config, code)
    yield handle
    ray.kill(handle)


@pytest.fixture
def jobs(scheduler: Any) -> Any:
    from actors.job_scheduler import JobClient

    return JobClient(scheduler)


async def until(ask: Callable[[], Awaitable[dict[str, Any]]], *states: str) -> dict[str, Any]:
    for _ in range(1200):
        job = await ask()
        if job["status"] in states:
            return job
        await asyncio.sleep(0.1)
    raise AssertionError(f"still {job['status']}, wanted {states}: {job}")


def config(name: str, **more: Any) -> dict[str, Any]:
    return {"experiment_name": name, "model": "tiny", **more}


async def test_a_job_runs_and_tells_how_it_went(jobs: Any, platform: PlatformConfig) -> None:
    submitted = await jobs.submit(config("learns"), owner="ann")
    job_id = submitted["job_id"]
    assert submitted["configuration"]["batch_size"] == 64

    done = await until(lambda: jobs.get(job_id, owner="ann"), "succeeded", "failed")

    assert done["status"] == "succeeded"
    assert done["progress"]["progress_percent"] == 100.0
    assert [point["reward"] for point in done["reward_curve"]] == [0.25, 0.5, 0.75, 1.0]
    assert "hello from learns" in await jobs.logs(job_id, owner="ann")
    states = [event["to"] for event in await jobs.events(job_id, owner="ann")]
    assert states == ["queued", "starting", "running", "succeeded"]
    with pytest.raises(NotFound):
        await jobs.get(job_id, owner="bob")


async def test_a_broken_data_file_fails_the_job_with_file_and_line(jobs: Any) -> None:
    job_id = (await jobs.submit(config("breaks"), owner="ann"))["job_id"]

    failed = await until(lambda: jobs.get(job_id, owner="ann"), "failed", "succeeded")

    assert failed["error"] == "data.jsonl:3: not JSON"
    assert failed["attempt"] == 1


async def test_a_killed_run_is_tried_again(jobs: Any) -> None:
    job_id = (await jobs.submit(config("dies once"), owner="ann"))["job_id"]

    done = await until(lambda: jobs.get(job_id, owner="ann"), "failed", "succeeded")

    assert (done["status"], done["attempt"], done["retries"]) == ("succeeded", 2, {"worker_lost": 1})


async def test_pause_resume_and_cancel(jobs: Any) -> None:
    job_id = (await jobs.submit(config("waits"), owner="ann"))["job_id"]
    await until(lambda: jobs.get(job_id, owner="ann"), "running")
    await jobs.pause(job_id, owner="ann")
    await until(lambda: jobs.get(job_id, owner="ann"), "paused")
    await jobs.resume(job_id, owner="ann")
    await until(lambda: jobs.get(job_id, owner="ann"), "running")
    cancelled = await jobs.cancel(job_id, owner="ann")
    assert cancelled["status"] == "cancelled"
    assert (await jobs.delete(job_id, owner="ann"))["status"] == "deleted"


async def test_after_kill_9_the_scheduler_loses_and_doubles_nothing(
    jobs: Any, scheduler: Any, platform: PlatformConfig
) -> None:
    import ray

    ids = [(await jobs.submit(config("waits"), owner="ann"))["job_id"] for _ in range(3)]
    await until(lambda: jobs.get(ids[0], owner="ann"), "running")
    pid = await scheduler.pid.remote()

    os.kill(pid, signal.SIGKILL)
    assert await scheduler.pid.remote() != pid
    assert ray.get_actor("job_scheduler", namespace="chatgrpo") == scheduler

    for job_id in ids:
        await until(lambda job_id=job_id: jobs.get(job_id, owner="ann"), "running")
        (platform.runs_dir / job_id / "go").touch()
    for job_id in ids:
        done = await until(lambda job_id=job_id: jobs.get(job_id, owner="ann"), "succeeded", "failed")
        assert (done["status"], done["attempt"]) == ("succeeded", 1)
        assert (platform.runs_dir / job_id / "starts").read_text() == "1\n"


async def test_more_gpus_than_there_are_is_refused_with_the_way_out(jobs: Any) -> None:
    with pytest.raises(InvalidRequest, match="write 0") as refused:
        await jobs.submit(config("big", resources={"gpus_per_worker": 4}), owner="ann")
    assert refused.value.field == "resources.gpus_per_worker"


def test_the_staged_code_holds_what_a_run_needs(tmp_path: Path) -> None:
    from actors.job_launcher import stage_code

    staged = stage_code(tmp_path)

    assert {p.name for p in staged.iterdir()} == {"train_grpo.py", "actors", "platform"}
    assert (staged / "platform" / "chatgrpo" / "jobs" / "job.py").is_file()
    assert not (staged / "platform" / "__init__.py").exists()
    assert stage_code(tmp_path) == staged
