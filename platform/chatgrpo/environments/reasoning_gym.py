"""Procedural questions from reasoning-gym, with a held-out set that shares no question with training.

A different seed is no proof of a different question: two one-digit terms give 200 sums, whatever the seed. So the
held-out questions are drawn first (from seeds of their own, the same for every run, so that runs compare), and
training takes only questions whose text is not among them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from hashlib import blake2b
from types import ModuleType
from typing import Any, ClassVar

from chatgrpo.environments.base import Environment, SingleTurn, Task
from chatgrpo.environments.config import ReasoningGymConfig
from chatgrpo.errors import InvalidRequest
from chatgrpo.messages import Message, system, user

logger = logging.getLogger(__name__)

# Marks in a task's metadata that `score_answer` judges it.
VERIFIER = "reasoning_gym"

# Questions are a function of seed + index. Training uses seeds below this, the held-out set those from here on.
_EVAL_SEED = 2**30
_CHUNK = 512  # questions per data set object; some of them hold tables as long as their size


@dataclasses.dataclass(frozen=True, slots=True)
class ReasoningGymSource:
    """Tasks in drawing order. `task.metadata["entry"]` is what the data set's own verifier wants."""

    inline: ClassVar[bool] = True
    tasks: Sequence[Task]

    def __len__(self) -> int:
        return len(self.tasks)

    def task(self, index: int) -> Task:
        return self.tasks[index]

    def environment(self, task: Task) -> Environment:
        return SingleTurn(task)


def reasoning_gym_source(config: ReasoningGymConfig, *, split: str, seed: int, num_eval: int) -> ReasoningGymSource:
    """`split` "eval" has exactly `num_eval` distinct questions; "train" up to `config.size`, none of them held out.

    Raises InvalidRequest for an unknown data set or parameter, and when there are too few distinct questions."""
    check(config)
    held_out = _draw(config, seed=_EVAL_SEED, wanted=num_eval, without=frozenset())
    if len(held_out) < num_eval:
        raise _too_few(config, found=len(held_out), num_eval=num_eval)
    if split == "eval":
        return ReasoningGymSource(_tasks(config, held_out))
    # Spread, so that runs with neighbouring seeds do not share a stretch of the stream.
    train_seed = (seed * 1_000_003) % (_EVAL_SEED // 2)
    drawn = _draw(config, seed=train_seed, wanted=config.size, without=frozenset(e["question"] for e in held_out))
    if not drawn:
        raise _too_few(config, found=len(held_out), num_eval=num_eval)
    if len(drawn) < config.size:
        logger.warning("few_questions dataset=%s train=%d size=%d", config.dataset, len(drawn), config.size)
    return ReasoningGymSource(_tasks(config, drawn))


@lru_cache(maxsize=32)
def _verifier(dataset: str, params: str) -> Any:
    return _module().create_dataset(dataset, **json.loads(params), size=1, seed=0)


def score_answer(answer: str, metadata: Mapping[str, Any]) -> float:
    """The verdict, 0 to 1, of the data set that made the task with this metadata."""
    dataset = _verifier(metadata["dataset"], json.dumps(metadata["params"], sort_keys=True))
    return float(dataset.score_answer(answer, metadata["entry"]))


def _module() -> ModuleType:
    # A dependency of reasoning-gym compiles with SyntaxWarnings, which are not the user's business.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import reasoning_gym

        return reasoning_gym  # type: ignore[no-any-return]


def check(config: ReasoningGymConfig) -> None:
    """Raises InvalidRequest for an unknown data set, an unknown parameter, and values that the data set refuses."""
    datasets = _module().factory.DATASETS
    if config.dataset not in datasets:
        raise InvalidRequest(
            f"reasoning-gym has no data set {config.dataset!r}; {_near(config.dataset, datasets)}",
            "environment.dataset",
        )
    fields = {f.name for f in dataclasses.fields(datasets[config.dataset][1])} - {"seed", "size"}
    for name in config.params:
        if name in {"seed", "size"}:
            raise InvalidRequest("is set by the platform; write `size` beside `params`", f"environment.params.{name}")
        if name not in fields:
            raise InvalidRequest(
                f"{config.dataset} has no parameter {name!r}; {_near(name, fields)}", f"environment.params.{name}"
            )
    try:
        _module().create_dataset(config.dataset, **config.params, size=1, seed=0)
    except Exception as error:  # each data set validates in its own way: assert, TypeError, KeyError
        raise InvalidRequest(
            f"{config.dataset} refuses {config.params}: {error or type(error).__name__}", "environment.params"
        ) from error


def _near(name: str, known: Mapping[str, Any] | set[str]) -> str:
    close = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(sorted(known))}"


def _entries(config: ReasoningGymConfig, seed: int) -> Iterator[dict[str, Any]]:
    while True:
        dataset = _module().create_dataset(config.dataset, **config.params, size=_CHUNK, seed=seed)
        for index in range(_CHUNK):
            yield dataset[index]
        seed += _CHUNK


def _draw(config: ReasoningGymConfig, *, seed: int, wanted: int, without: frozenset[str]) -> tuple[dict[str, Any], ...]:
    """Up to `wanted` entries with distinct questions; fewer when the data set has no more.

    With n questions known, an evenly likely unseen one stays hidden for 10 n draws with probability e^-10."""
    found: dict[str, dict[str, Any]] = {}
    misses = 0
    for entry in _entries(config, seed) if wanted else ():
        question = entry["question"]
        if question in found or question in without:
            misses += 1
            if misses > 1000 + 10 * (len(found) + len(without)):
                break
            continue
        misses = 0
        found[question] = entry
        if len(found) == wanted:
            break
    return tuple(found.values())


def _tasks(config: ReasoningGymConfig, entries: Sequence[dict[str, Any]]) -> tuple[Task, ...]:
    opening: tuple[Message, ...] = (system(config.system_prompt),) if config.system_prompt is not None else ()
    return tuple(
        Task(
            task_id=f"{config.dataset}-{blake2b(entry['question'].encode(), digest_size=6).hexdigest()}",
            messages=(*opening, user(entry["question"] + config.prompt_suffix)),
            answer=None if entry["answer"] is None else str(entry["answer"]),
            metadata={"verifier": VERIFIER, "dataset": config.dataset, "params": dict(config.params), "entry": entry},
        )
        for entry in entries
    )


def _too_few(config: ReasoningGymConfig, *, found: int, num_eval: int) -> InvalidRequest:
    return InvalidRequest(
        f"{config.dataset} with {config.params} has only {found} distinct questions; {num_eval} are to be held out "
        "and at least 1 must stay for training: lower num_eval_prompts or widen the parameters (more terms or digits)",
        "environment.params",
    )
