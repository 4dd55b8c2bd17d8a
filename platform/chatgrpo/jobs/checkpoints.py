"""Checkpoints on disk: published whole or not at all, checked by hash before use, thinned out by a pure policy.

A root holds folders `step-00000050`, each with a `manifest.json` that names every file with its size and SHA-256. A
folder without a manifest, or that does not match it, was never finished or has rotted: it is passed over for the one
before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One published checkpoint. `metrics` are what the run knew when it was saved."""

    step: int
    path: Path
    created_at: float = 0.0
    size_bytes: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


def folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step of a checkpoint from its name."""
    return int(path.name.removeprefix("step-"))


def save_atomic(
    target: Path,
    write: Callable[[Path], None],
    *,
    created_at: float = 0.0,
    metrics: Mapping[str, float] | None = None,
) -> Path:
    """Lets `write` fill a folder and publishes it as `target` (from `folder`). A reader never sees a part of it; a
    crash leaves only a folder that `sweep_partial` removes. An existing `target` is replaced."""
    partial = begin(target)
    write(partial)
    return publish(partial, target, created_at=created_at, metrics=metrics)


def begin(target: Path) -> Path:
    """An empty folder beside `target` to write into; several processes may fill it before one calls `publish`."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def publish(
    partial: Path, target: Path, *, created_at: float = 0.0, metrics: Mapping[str, float] | None = None
) -> Path:
    """Seals `partial` with its manifest and moves it to `target`."""
    files = {str(p.relative_to(partial)): p for p in sorted(partial.rglob("*")) if p.is_file()}
    manifest = {
        "created_at": created_at,
        "metrics": {k: v for k, v in (metrics or {}).items() if math.isfinite(v)},
        "files": {name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for name, p in files.items()},
    }
    (partial / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    for path in [*files.values(), partial / MANIFEST, partial]:
        _sync(path)
    if target.exists():
        # rename cannot replace a folder that is not empty; the old one is out of the way before the new one comes in.
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        partial.rename(target)
    _sync(target.parent)
    return target


def is_valid(path: Path) -> bool:
    """Whether every file that the manifest names is there with the same content."""
    manifest = _manifest(path)
    if manifest is None:
        return False
    return all(
        (path / name).is_file()
        and (path / name).stat().st_size == wanted["bytes"]
        and _sha256(path / name) == wanted["sha256"]
        for name, wanted in manifest["files"].items()
    )


def entries(root: Path) -> list[Entry]:
    """Published checkpoints, oldest first; their content is not checked."""
    found = []
    for path in sorted(root.glob("step-*")):
        name, manifest = _NAME.fullmatch(path.name), _manifest(path)
        if name and manifest is not None:
            size = sum(f["bytes"] for f in manifest["files"].values())
            found.append(
                Entry(
                    step=int(name[1]),
                    path=path,
                    created_at=manifest.get("created_at", 0.0),
                    size_bytes=size,
                    metrics=manifest.get("metrics", {}),
                )
            )
    return sorted(found, key=lambda e: e.step)


def latest_valid(root: Path) -> Path | None:
    """The newest checkpoint that is whole, or None; damaged ones are passed over with a warning."""
    for entry in reversed(entries(root)):
        if is_valid(entry.path):
            return entry.path
        logger.warning("checkpoint %s does not match its manifest; going back to the one before", entry.path)
    return None


def surplus(
    found: Sequence[Entry],
    *,
    limit: int,
    best: int = 1,
    every: int | None = None,
    metric: str = "eval_reward",
) -> list[Entry]:
    """Which of `found` to delete: all but the `limit` newest, the `best` highest by `metric` (the newer of equals) and
    those whose step is a multiple of `every`."""
    by_age = sorted(found, key=lambda e: e.step)
    scored = sorted((e for e in by_age if metric in e.metrics), key=lambda e: (e.metrics[metric], e.step))
    kept = {e.step for e in [*by_age[-limit:], *(scored[-best:] if best else [])]}
    return [e for e in by_age if e.step not in kept and not (every and e.step % every == 0)]


def retain(
    root: Path, limit: int, *, best: int = 1, every: int | None = None, metric: str = "eval_reward"
) -> list[Path]:
    """Deletes what `surplus` says; returns the deleted folders."""
    gone = [e.path for e in surplus(entries(root), limit=limit, best=best, every=every, metric=metric)]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return gone


def best_valid(root: Path, metric: str = "eval_reward") -> Entry | None:
    """The whole checkpoint with the highest `metric` (the newer of equals); None when no whole one has it."""
    scored = sorted(
        (e for e in entries(root) if metric in e.metrics), key=lambda e: (e.metrics[metric], e.step), reverse=True
    )
    return next((e for e in scored if is_valid(e.path)), None)


def sweep_partial(root: Path) -> None:
    """Removes what crashes left half-written. Call it before the first save of a run, never beside a running one."""
    for path in [*root.glob(".step-*.partial"), *root.glob(".step-*.old")]:
        shutil.rmtree(path, ignore_errors=True)


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
