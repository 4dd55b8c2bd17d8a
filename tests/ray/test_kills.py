"""A real GRPO job, its processes killed with `kill -9` at random steps: it ends with the weights of the run that nobody
disturbed, equal to the bit, and it was started once for every kill and once more.

CI kills a worker, then the driver and the scheduler at once. `make kills` kills each by itself, and the machine, at
other steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from chatgrpo.config import PlatformConfig
from chatgrpo.jobs.run_folder import RunFolder
from chatgrpo.training.config import TrainConfig
from tests.toy import TOY

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]

STEPS = 12
CONFIG: dict[str, Any] = TOY | {
    "experiment_name": "kills",
    "prompts_per_step": 4,
    "num_generations": 16,
    "max_steps": STEPS,
    "eval_steps": 4,
    "resources": {"threads_per_worker": 1, "gpus_per_worker": 0},
}

CASES: list[tuple[tuple[str, ...], int]] = [(("worker", "driver and scheduler"), 0)]
if os.environ.get("CHATGRPO_KILL"):
    # "worker+driver" kills one after the other.
    seeds = [int(seed) for seed in os.environ.get("CHATGRPO_KILL_SEEDS", "1").split(",")]
    CASES = [(tuple(kinds.split("+")), seed) for kinds in os.environ["CHATGRPO_KILL"].split(",") for seed in seeds]


@pytest.fixture(scope="module")
def undisturbed(training_platform: PlatformConfig) -> dict[str, torch.Tensor]:
    """The weights of the run in this process, without Ray and without a break."""
    from chatgrpo.training.loop import Place, train

    platform = training_platform
    run_dir = platform.runs_dir / "undisturbed"
    run_dir.mkdir(parents=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(
            TrainConfig.model_validate(CONFIG),
            Place(run_id="undisturbed", home=platform.home, run_dir=run_dir),
            lambda *_: None,
        )
    finally:
        torch.set_num_threads(threads)
    return weights(run_dir)


@pytest.mark.parametrize(("kinds", "seed"), CASES, ids=lambda v: "+".join(v) if isinstance(v, tuple) else str(v))
async def test_a_killed_job_ends_with_the_weights_of_one_that_was_not(
    kinds: tuple[str, ...],
    seed: int,
    ray_cluster: str,
    training_platform: PlatformConfig,
    training_scheduler: Any,
    undisturbed: dict[str, torch.Tensor],
) -> None:
    from actors.job_scheduler import JobClient

    jobs, rng = JobClient(training_scheduler), random.Random(seed)
    machine = Machine(ray_cluster) if "raylet" in kinds else None
    job_id = (await jobs.submit(CONFIG, owner="ann"))["job_id"]
    folder = RunFolder.of(training_platform.runs_dir, job_id)
    starts = 1
    for kind, step in zip(kinds, sorted(rng.sample(range(1, STEPS - 1), len(kinds))), strict=True):
        await until(partial(reached, jobs, folder, starts, step))
        await kill(kind, job_id, training_scheduler, machine)
        # Without its scheduler a run goes on.
        starts += kind != "scheduler"
    await until(partial(ended, jobs, job_id))
    view = await jobs.get(job_id, owner="ann")
    assert (view["status"], view["attempt"]) == ("succeeded", starts), await jobs.logs(job_id, owner=None)
    assert submissions(job_id) == [f"{job_id}-{attempt}" for attempt in range(1, starts + 1)]
    lines = [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()]
    assert lines == list(range(STEPS + 1))
    trained = weights(folder.path)
    assert all(torch.equal(trained[name], undisturbed[name]) for name in undisturbed)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(12_000):
        if await holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("waited for four minutes in vain")


async def reached(jobs: Any, folder: RunFolder, attempt: int, step: int) -> bool:
    """Whether the attempt is at that step, or after it."""
    view = await jobs.get(folder.path.name, owner=None)
    assert view["status"] not in {"failed", "succeeded"}, (view["status"], view["error"], attempt, step)
    metrics = folder.read_metrics()
    is_on = view["attempt"] == attempt and view["status"] == "running"
    return is_on and bool(metrics) and metrics[-1]["step"] >= step


async def ended(jobs: Any, job_id: str) -> bool:
    return (await jobs.get(job_id, owner=None))["status"] in {"succeeded", "failed"}


async def kill(kind: str, job_id: str, scheduler: Any, machine: Machine | None) -> None:
    if "scheduler" in kind:
        os.kill(await scheduler.pid.remote(), signal.SIGKILL)
    if "driver" in kind:
        find("python", "train_grpo.py", job_id).kill()
    if "worker" in kind:
        find("ray::", "RayTrainWorker").kill()
    if kind == "raylet":
        assert machine is not None
        machine.kill()


def find(*words: str) -> psutil.Process:
    """The one process under this test whose command line has all words, the first in its program."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = process.cmdline()
        except psutil.NoSuchProcess:
            continue
        if line and words[0] in line[0] and all(word in " ".join(line) for word in words):
            found.append(process)
    assert len(found) == 1, (words, found)
    return found[0]


def submissions(job_id: str) -> list[str]:
    """Every run of the job that Ray was ever asked for."""
    from ray._private.services import get_webui_url_from_internal_kv
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(f"http://{get_webui_url_from_internal_kv()}")
    return sorted(str(d.submission_id) for d in client.list_jobs() if str(d.submission_id).startswith(job_id))


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(run_dir / "export" / "model").state_dict()
    return state


@contextlib.contextmanager
def untold() -> Iterator[None]:
    """`ray start` makes its cluster the one that every later ray.init() on this machine joins, even when it is gone."""
    from ray._common.utils import get_default_ray_temp_dir

    told = Path(get_default_ray_temp_dir()) / "ray_current_cluster"
    before = told.read_text() if told.is_file() else None
    yield
    if before is None:
        told.unlink(missing_ok=True)
    else:
        told.write_text(before)


class Machine:
    """A second node of the cluster, the only one with a free CPU while it lives."""

    def __init__(self, address: str) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        cpus = ray.cluster_resources()["CPU"]

        class Tenant:
            def here(self) -> bool:
                return True

        self._tenant: Any = ray.remote(Tenant).options(num_cpus=cpus, scheduling_strategy=here).remote()
        ray.get(self._tenant.here.remote())
        known = {process.pid for process in psutil.process_iter()}
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--address",
            address,
            "--num-cpus=1",
            "--dashboard-agent-listen-port=0",
        ]
        with untold():
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._processes = [
            process
            for process in psutil.process_iter(["cmdline"])
            if process.pid not in known and any(address in word for word in process.info["cmdline"] or [])
        ]
        assert any("raylet/raylet" in process.info["cmdline"][0] for process in self._processes), self._processes

    def kill(self) -> None:
        """The machine is lost; the first one has room again."""
        import ray

        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        ray.kill(self._tenant)
