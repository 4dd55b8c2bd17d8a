"""One local Ray cluster for the whole test process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from actors.names import NAMESPACE

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
