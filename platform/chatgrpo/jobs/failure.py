"""Why a run ended, and whether to start it again: budgets per cause, exponential back-off with jitter."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from chatgrpo.jobs.config import Retries
from chatgrpo.jobs.job import Job

SMALLEST_MICRO_BATCH_TOKENS = 256
"""Below this a halved micro-batch no longer frees memory worth a retry."""


class Cause(StrEnum):
    USER = "user"
    WORKER_LOST = "worker_lost"
    NODE_LOST = "node_lost"
    OUT_OF_MEMORY = "out_of_memory"
    LAUNCH_FAILED = "launch_failed"


# In this order: a node that ran out of memory also loses workers, and a lost node loses actors.
_SIGNS: tuple[tuple[Cause, re.Pattern[str]], ...] = (
    (
        Cause.OUT_OF_MEMORY,
        re.compile(
            r"OutOfMemoryError|out of memory|running low on memory|oom[- ]kill|DefaultCPUAllocator: can't allocate",
            re.IGNORECASE,
        ),
    ),
    (Cause.NODE_LOST, re.compile(r"NodeDiedError|node (was|has been) (terminated|lost|preempted)|node .* died")),
    (
        Cause.WORKER_LOST,
        re.compile(
            r"WorkerCrashedError|ActorDiedError|ActorUnavailableError|RayActorError|WorkerGroupError.*died"
            r"|worker process has died|WorkerHealthCheckFailedError"
            r"|worker (process )?died|worker died unexpectedly|job supervisor actor (failed|died)"
        ),
    ),
)


# Ray lists all that may have happened to a process that is gone, out of memory among it.
_GUESSES = re.compile(r"Some common causes include[^\n]*")


def facts_only(text: str) -> str:
    """`text` of Ray without its guesses."""
    return _GUESSES.sub("", text).rstrip()


def classify(*, result: Mapping[str, Any] | None, message: str, log: str, exit_code: int | None) -> Cause:
    """The cause of a failed run, from what it wrote (`result`), Ray's message, the end of its log and exit status.

    A run that names its cause is believed. A process that a signal ended (status < 0 or > 128) had no say."""
    if result and result.get("cause") in set(Cause):
        return Cause(result["cause"])
    text = facts_only("\n".join([str((result or {}).get("error", "")), message, log[-8000:]]))
    for cause, sign in _SIGNS:
        if sign.search(text):
            return cause
    killed = exit_code is not None and (exit_code < 0 or exit_code > 128)
    return Cause.WORKER_LOST if killed and not result else Cause.USER


def explain(*, result: Mapping[str, Any] | None, message: str, log: str) -> str:
    """One clear line for the user: the run's own words, else the last line of its log, else what Ray said."""
    if result and result.get("error"):
        return facts_only(str(result["error"]))
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1][:500] if lines else (message.strip() or "the run ended without a word; see its log")


@dataclass(frozen=True, slots=True)
class Retry:
    """Start again after `delay_s` with some fields of the configuration changed."""

    delay_s: float
    overrides: dict[str, Any] = field(default_factory=dict)


def decide(job: Job, cause: Cause, retries: Retries) -> Retry | None:
    """None when the budget of that cause is used up, or when another try cannot help."""
    used = job.retries.get(cause, 0)
    if used >= retries.budget(cause):
        return None
    overrides = dict(job.overrides)
    if cause is Cause.OUT_OF_MEMORY:
        tokens = int(overrides.get("micro_batch_tokens", job.config.get("micro_batch_tokens", 4096)))
        if tokens // 2 < SMALLEST_MICRO_BATCH_TOKENS:
            return None
        overrides["micro_batch_tokens"] = tokens // 2
    delay_s = min(retries.max_delay_s, retries.base_delay_s * 2.0**used)
    # Full jitter on the upper half, seeded by the job: spread over jobs, the same when replayed.
    jitter = random.Random(f"{job.id}:{job.attempt}").uniform(0.5, 1.0)
    return Retry(delay_s * jitter, overrides)
