"""One local Ray cluster for the whole test process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.names import JOB_SCHEDULER, NAMESPACE
from chatgrpo.config import PlatformConfig
from chatgrpo.jobs.config import JobsConfig

# Before Ray starts: its workers inherit it, and idle torch threads must sleep instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray reads its mode once, at its own import, which the test modules cause.
os.environ["RAY_AUTH_MODE"] = "token"


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a local cluster: four logical CPUs, the Jobs API, its token in a folder of the test."""
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text("0123456789abcdef" * 4)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    import ray

    from actors.agent_port import any_agent_port

    with any_agent_port():
        context = ray.init(num_cpus=4, include_dashboard=True, namespace=NAMESPACE, log_to_driver=False)
    yield context.address_info["address"]
    ray.shutdown()


@pytest.fixture(scope="module")
def training_platform(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> PlatformConfig:
    home = tmp_path_factory.mktemp("home")
    (home / "models").symlink_to(models_dir)
    return PlatformConfig(home=home)


@pytest.fixture(scope="module")
def training_scheduler(training_platform: PlatformConfig) -> Iterator[Any]:
    """The scheduler as it is in service: its jobs really train."""
    import ray

    from actors.job_scheduler import start_job_scheduler

    handle = start_job_scheduler(training_platform, JobsConfig(tick_s=0.2, retries={"base_delay_s": 0.1}))
    yield handle
    ray.kill(handle)
    # The next module starts one of the same name.
    for _ in range(200):
        try:
            ray.get_actor(JOB_SCHEDULER, namespace=NAMESPACE)
        except ValueError:
            break
        time.sleep(0.1)
