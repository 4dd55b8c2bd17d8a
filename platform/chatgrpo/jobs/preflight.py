"""Names that only the user's code or a heavy library can confirm, looked up before a job is queued: data sets and
parameters of reasoning-gym, plug-in environments, tools and rewards.

The look is taken in a process of its own, as the run will take it: a plug-in is read as it is now, and one that hangs
or exits takes nothing with it. What passed is not looked at again until a plug-in's file changes.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from chatgrpo.errors import InvalidRequest
from chatgrpo.training.config import TrainConfig

logger = logging.getLogger(__name__)

# reasoning-gym takes 2 to 4 seconds to import; whoever is slower than this is left to the run.
TIMEOUT_S = 40.0


def check(config: TrainConfig) -> None:
    """Looks every name up in this process. Raises InvalidRequest naming field, value and what there is instead."""
    from chatgrpo.environments.registry import check_source
    from chatgrpo.rewards.registry import build_reward

    check_source(config.environment)
    for reward in config.rewards:
        build_reward(reward)


class Preflight:
    """Calls `check` in a fresh process, with the platform's plug-ins loaded."""

    def __init__(self, plugins: Sequence[str] = (), *, timeout_s: float = TIMEOUT_S) -> None:
        self._plugins = list(plugins)
        self._timeout_s = timeout_s
        self._passed: set[bytes] = set()

    def __call__(self, config: TrainConfig) -> None:
        """Raises what `check` raises. A look that cannot be taken lets the job pass: its run will say what is wrong."""
        asked = config.model_dump(mode="json", include={"environment", "rewards"})
        seen = json.dumps([asked, [_changed_at(plugin) for plugin in self._plugins]], sort_keys=True)
        key = blake2b(seen.encode()).digest()  # prompts may be in it: megabytes
        if key in self._passed:
            return
        refusal = self._ask({"config": asked, "plugins": self._plugins})
        if refusal:
            raise InvalidRequest(refusal["message"], refusal["field"])
        self._passed.add(key)

    def _ask(self, question: dict[str, Any]) -> dict[str, str] | None:
        root = str(Path(__file__).parents[2])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            done = subprocess.run(
                [sys.executable, "-m", "chatgrpo.jobs.preflight"],
                input=json.dumps(question),
                capture_output=True,
                text=True,
                timeout=self._timeout_s,
                env={**os.environ, "PYTHONPATH": paths},
                check=True,
            )
            answer: dict[str, dict[str, str] | None] = json.loads(done.stdout.splitlines()[-1])
        except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
            logger.warning("preflight could not be done, the run will check: %s", error)
            return None
        return answer["refusal"]


def _changed_at(plugin: str) -> float:
    """When the file of a plug-in last changed; a module's name is taken to be installed for good."""
    return Path(plugin).stat().st_mtime if plugin.endswith(".py") and Path(plugin).is_file() else 0.0


def _main() -> None:
    from chatgrpo.plugins import load_plugins

    question = json.load(sys.stdin)
    refusal = None
    try:
        load_plugins(question["plugins"])
        check(TrainConfig.model_validate(question["config"]))
    except InvalidRequest as error:
        refusal = {"message": error.message, "field": error.field}
    # On a line of its own: plug-ins may print.
    sys.stdout.write(f"\n{json.dumps({'refusal': refusal})}\n")


if __name__ == "__main__":
    _main()
