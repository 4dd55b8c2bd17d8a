"""How the learner reaches rollout workers, wherever they run; `actors/rollout_worker.py` has those on Ray.

A worker is one incarnation: when it is lost, its successor has another name, so that a late report of the old one is
nobody's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from chatgrpo.rollouts.worker import Order, Report, RolloutWorker, RolloutWorkerClosed, Sampler, Weights


@dataclass(frozen=True, slots=True)
class Lost:
    """The worker will say nothing more. `fault`: the run cannot go on with any other worker either."""

    cause: str
    fault: Exception | None = None


# (worker's name, what it says): called from any thread.
Tell = Callable[[str, Report | Lost], None]


class Worker(Protocol):
    """All methods return at once; orders arrive in the order in which they were given."""

    def play(self, orders: Sequence[Order]) -> None: ...

    def load(self, weights: Weights) -> None: ...

    def close(self) -> None:
        """Ends it, also when it hangs; it says nothing afterwards."""
        ...


class Fleet(Protocol):
    def share(self, weights: Weights) -> Weights:
        """Weights in the form that `Worker.load` takes, made once for all workers."""
        ...

    def start(self, name: str, tell: Tell) -> Worker:
        """Returns at once. The worker is up with its first report; until there is room for it, it says nothing."""
        ...


class ThreadFleet:
    """Workers that are threads of this process, for runs without Ray. `make` builds one worker's sampler."""

    def __init__(self, make: Callable[[], Sampler]) -> None:
        self._make = make

    def share(self, weights: Weights) -> Weights:
        return weights

    def start(self, name: str, tell: Tell) -> Worker:
        worker = RolloutWorker(self._make, name=name)
        threading.Thread(target=_listen, args=(worker, name, tell), name=f"listen-{name}", daemon=True).start()
        return worker


def _listen(worker: RolloutWorker, name: str, tell: Tell) -> None:
    try:
        while True:
            tell(name, worker.report())
    except RolloutWorkerClosed:
        return
    except Exception as error:  # noqa: BLE001 - in this process a lost thread is a fault, not bad luck
        tell(name, Lost(f"{type(error).__name__}: {error}", error))
