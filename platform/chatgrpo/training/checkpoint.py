"""What a run must remember to go on as if it had never stopped.

Sampling and data order follow from (seed, step), so there is no random state to keep beside the cursor: weights,
optimizer, step counters, cursor and the history of evaluations are everything.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from chatgrpo.jobs import checkpoints
from chatgrpo.training import ranks
from chatgrpo.training.evaluation import Evaluation
from chatgrpo.training.optimization import Optimization
from chatgrpo.training.policy import Policy


@dataclass(slots=True)
class RunState:
    """`evaluations` are (step, result), oldest first; the first one is of the untrained policy. `cursors`: by rank.
    `strikes`: bad steps in a row up to now (see `jobs.divergence`)."""

    step: int = 0
    num_updates: int = 0
    strikes: int = 0
    cursors: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[tuple[int, Evaluation]] = field(default_factory=list)

    def cursor_of(self, rank: int, world_size: int) -> dict[str, Any]:
        """Where this rank's data stream goes on: its own place, or with another number of ranks behind all of them."""
        if world_size == len(self.cursors):
            return self.cursors[rank]
        return {**self.cursors[0], "drawn": max(int(cursor["drawn"]) for cursor in self.cursors)}


def save_checkpoint(
    root: Path, state: RunState, policy: Policy, optimization: Optimization, *, metrics: Mapping[str, float]
) -> Path:
    """All ranks write into one folder on storage that they share; rank 0 seals and publishes it."""
    target = checkpoints.folder(root, state.step)
    partial = ranks.gather(checkpoints.begin(target) if ranks.rank() == 0 else None)[0]
    optimization.save(partial)
    with optimization.whole_weights():
        if ranks.rank() == 0:
            torch.save({name: p.detach() for name, p in policy.trainable()}, partial / "policy.pt")
            (partial / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")
    ranks.barrier()
    if ranks.rank() == 0:
        checkpoints.publish(partial, target, created_at=time.time(), metrics=metrics)
    ranks.barrier()
    return target


def load_checkpoint(folder: Path, policy: Policy, optimization: Optimization) -> RunState:
    """Puts weights and optimizer back and returns the rest."""
    load_weights(folder, policy, optimization)
    optimization.load(folder)
    data = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    data["evaluations"] = [(step, Evaluation(**result)) for step, result in data["evaluations"]]
    return RunState(**data)


def load_weights(folder: Path, policy: Policy, optimization: Optimization) -> None:
    """Puts the weights alone back, for an export; all ranks call it."""
    with optimization.whole_weights(), torch.no_grad():
        weights = torch.load(folder / "policy.pt", map_location="cpu", weights_only=True)
        for name, parameter in policy.trainable():
            parameter.copy_(weights[name])
