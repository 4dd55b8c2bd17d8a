"""Sweeps in YAML files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chatgrpo.config import load_yaml
from chatgrpo.jobs.sweeps.config import SweepConfig
from chatgrpo.overrides import apply_overrides


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping of a sweep file with `key=value` overrides in it. `train` may be the path of a training file, seen
    from the sweep's own. Raises InvalidRequest for a file that is missing or broken, and for unknown fields."""
    data = load_yaml(path)
    if isinstance(data.get("train"), str):
        data = data | {"train": load_yaml(path.parent / data["train"])}
    return apply_overrides(data, overrides, SweepConfig)
