"""Several LoRA runs on one base in one process: one copy of the base's weights, one engine, one batch.

Each run is the run that it would be alone, with its own adapter, optimizer, data, trackers, checkpoints and export; it
lives in a thread, and what it shares is the base and the engine (see `SharedEngine`). Decoding is bound by reading the
base's weights, so a batch of four runs costs little more than that of one; updates are bound by arithmetic and are made
one after the other. Sampling follows from each run's own seed, so it samples what it would sample alone, up to the
rounding of products in a larger batch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from chatgrpo.errors import InvalidRequest
from chatgrpo.inference.loading import load
from chatgrpo.inference.shared_base import SharedBase
from chatgrpo.inference.shared_engine import SharedEngine
from chatgrpo.training.cohort_rules import check_cohort
from chatgrpo.training.config import TrainConfig
from chatgrpo.training.loop import Outcome, Place, Report, Run, carry_out
from chatgrpo.training.precision import compute_dtype, device_of_rank

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One run; `report`, and `on_end` with its outcome or what failed it, are called in its thread."""

    config: TrainConfig
    place: Place
    report: Report
    on_end: Callable[[Outcome | Exception], None] = lambda _: None


def _always() -> bool:
    return True


def train_together(
    members: Sequence[Member], *, at_once: int | None = None, may_begin: Callable[[], bool] = _always
) -> list[Outcome | Exception | None]:
    """Runs or resumes all members, `at_once` of them at a time (empty: all); when one ends the next takes its place, if
    it `may_begin`.

    -> how each ended, in their order, None for one that did not begin; a run that fails leaves the others alone. Raises
    InvalidRequest when they cannot share a base."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    check_cohort([member.config for member in members])
    places = min(at_once or len(members), len(members))
    shared = SharedEngine(_base(members[0]), max_batch_size=_batch_size(members, places))
    threads = partial(torch.set_num_threads, torch.get_num_threads())
    with ThreadPoolExecutor(places, thread_name_prefix="run", initializer=threads) as pool:
        return list(pool.map(partial(_train, shared, may_begin), members))


def _base(member: Member) -> SharedBase:
    device, config = device_of_rank(), member.config
    if compute_dtype(config.dtype, device) != torch.float32:
        raise InvalidRequest(f"{config.dtype} on {device} cannot share a base with other runs; write float32", "dtype")
    place = member.place
    base = SharedBase(load(config.model, models_dir=place.models_dir, runs_dir=place.runs_dir, device=device))
    if base.weights is None:
        raise InvalidRequest(f"{config.model!r} is not Llama-shaped: its runs cannot share a base", "model")
    return base


def _batch_size(members: Iterable[Member], places: int) -> int:
    return sum(sorted((m.config.rollout_batch_size for m in members), reverse=True)[:places])


def _train(shared: SharedEngine, may_begin: Callable[[], bool], member: Member) -> Outcome | Exception | None:
    if not may_begin():
        return None
    ended: Outcome | Exception
    try:
        with shared.turn():
            run = Run(member.config, member.place, member.report, shared=shared)
        ended = carry_out(run)
    except Exception as error:
        # Whatever ended one run, the others go on.
        logger.exception("run=%s failed in its cohort", member.place.run_id)
        ended = error
    finally:
        shared.leave(member.place.run_id)
    member.on_end(ended)
    return ended
