"""Writes a policy so that others can use it: a PEFT adapter, or merged weights that plain transformers loads.

Layout of a run's `export/` folder: full fine-tuning `model/`; LoRA `adapter/` and `base_model` (the name of what it
goes on), and `model/` once `export_merged` was called.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from chatgrpo.errors import NotFound
from chatgrpo.inference.chat_template import ChatTemplate
from chatgrpo.inference.loading import load
from chatgrpo.training.policy import Policy


def export_policy(policy: Policy, template: ChatTemplate, *, base_model: str, folder: Path) -> None:
    """Replaces `folder` in one step. The caller holds whole weights."""
    scratch = _scratch(folder)
    if policy.is_lora:
        policy.model.save_pretrained(scratch / "adapter")
        (scratch / "base_model").write_text(base_model, encoding="utf-8")
    else:
        policy.model.save_pretrained(scratch / "model")
        template.tokenizer.save_pretrained(scratch / "model")
    replace_folder(scratch, folder)


def export_merged(job_id: str, *, runs_dir: Path, models_dir: Path) -> Path:
    """The folder of a job's merged weights, made from base and adapter if it is not there yet.

    Raises NotFound for an unknown job, Conflict when it has not exported yet."""
    run = runs_dir / job_id
    if not run.is_dir():
        raise NotFound(f"job {job_id!r} has no run folder in {runs_dir}")
    merged = run / "export" / "model"
    if not (merged / "config.json").is_file():
        loaded = load(job_id, models_dir=models_dir, runs_dir=runs_dir)
        scratch = _scratch(merged)
        loaded.model.save_pretrained(scratch)
        loaded.template.tokenizer.save_pretrained(scratch)
        replace_folder(scratch, merged)
    return merged


def _scratch(folder: Path) -> Path:
    scratch = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    return scratch


def replace_folder(scratch: Path, folder: Path) -> None:
    """Who reads meanwhile finds the old folder or the new one, but for the instant between two renames."""
    old = folder.with_name(f"{scratch.name}-old")
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, old)
    os.rename(scratch, folder)
    shutil.rmtree(old, ignore_errors=True)
