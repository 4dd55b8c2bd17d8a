"""Lets more than one Ray cluster live on a machine.

The agent through which jobs are started listens on one fixed port (52365). A second cluster's agent finds it taken, and
its jobs never start. `ray start` has an option for it, `ray.init` has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray._private.parameter as parameter


@contextmanager
def any_agent_port() -> Iterator[None]:
    """A cluster that `ray.init` starts within the block has its agent on a free port."""
    module: Any = parameter
    original = module.RayParams
    module.RayParams = partial(original, dashboard_agent_listen_port=0)
    try:
        yield
    finally:
        module.RayParams = original
