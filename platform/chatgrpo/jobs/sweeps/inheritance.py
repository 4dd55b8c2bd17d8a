"""One run goes on from another's checkpoint: first put aside in the heir's folder, then taken over by the heir itself.

Two steps, because the heir's old process may still write when it is decided. What is put aside is numbered, and the
sweep's table says which number counts: a crash between the two leaves a trial either as it was or wholly taken over.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from chatgrpo.jobs import checkpoints
from chatgrpo.jobs.run_folder import RunFolder, write_atomic

_METRICS = "metrics.jsonl"


def bequeath(donor: RunFolder, heir: RunFolder, number: int) -> int | None:
    """Puts the donor's newest whole checkpoint and its figures up to then aside as the heir's takeover `number`.
    Returns its step; None when the donor has no checkpoint."""
    # It may be thinned out while it is linked; then there is a newer one.
    for _ in range(3):
        newest = checkpoints.latest_valid(donor.checkpoints)
        if newest is None:
            return None
        aside = _aside(heir, number)
        shutil.rmtree(aside, ignore_errors=True)
        try:
            shutil.copytree(newest, aside / newest.name, copy_function=_link_or_copy)
        except (shutil.Error, FileNotFoundError):
            continue
        step = checkpoints.step_of(newest)
        lines = [json.dumps(line) + "\n" for line in donor.read_metrics() if line.get("step", step + 1) <= step]
        write_atomic(aside / _METRICS, "".join(lines))
        return step
    return None


def is_pending(heir: RunFolder) -> bool:
    """Whether the heir has not yet taken over what was put aside for it."""
    return any(heir.path.glob("takeover-*"))


def adopt(heir: RunFolder, number: int) -> None:
    """Makes takeover `number` the heir's only checkpoint and its figures the heir's; nothing to do when that is done.
    Call it while the folder is held."""
    aside = _aside(heir, number)
    for path in heir.path.glob("takeover-*"):
        if path != aside:
            shutil.rmtree(path)
    if not aside.is_dir():
        return
    # In this order: after a crash in between it is done again.
    for entry in aside.glob("step-*"):
        shutil.rmtree(heir.checkpoints, ignore_errors=True)
        heir.checkpoints.mkdir(parents=True)
        shutil.copytree(entry, heir.checkpoints / entry.name, copy_function=_link_or_copy)
    shutil.copyfile(aside / _METRICS, heir.metrics)
    done = aside.with_name(f".{aside.name}")
    aside.rename(done)
    shutil.rmtree(done)


def _aside(heir: RunFolder, number: int) -> Path:
    return heir.path / f"takeover-{number}"


def _link_or_copy(source: str, target: str) -> str:
    """A published checkpoint is never written again, so one file may have two names."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
    return target
