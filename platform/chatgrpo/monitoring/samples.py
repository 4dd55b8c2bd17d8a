"""What parts of the platform report, as values of declared metrics. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from chatgrpo.monitoring import catalog
from chatgrpo.monitoring.catalog import Metric
from chatgrpo.monitoring.history import Row

# So many active runs are told apart; a cluster with more shows the first ones.
MAX_JOBS = 200

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """One value. `labels` are those of the metric, in its order."""

    metric: Metric
    value: float
    labels: tuple[str, ...] = ()

    @property
    def row(self) -> Row:
        """As it stands in the exposition."""
        return self.metric.sample_name, dict(zip(self.metric.labels, self.labels, strict=True)), self.value


def of_components(components: Mapping[str, Facts]) -> Iterator[Sample]:
    for name, state in components.items():
        yield Sample(catalog.COMPONENT_UP, float(state["status"] == "healthy"), (name,))


def of_queue(queue: Facts) -> Iterator[Sample]:
    for state, count in queue.get("states", {}).items():
        yield Sample(catalog.JOBS, float(count), (str(state),))


def of_chat(chat: Facts) -> Iterator[Sample]:
    # Replicas of models that tell the hub themselves would be counted once for each API replica.
    if chat and not chat.get("reports_itself"):
        yield Sample(catalog.CHAT_REQUESTS, float(chat["active_requests"]))
        yield Sample(catalog.CHAT_TOKENS, float(chat["tokens_generated"]))


def of_machine(system: Facts) -> Iterator[Sample]:
    for name, metric in catalog.MACHINE.items():
        yield Sample(metric, float(system[name]))
    for gpu in system["gpus"]:
        label = (str(gpu["index"]),)
        yield Sample(catalog.GPU_PERCENT, float(gpu["utilization_percent"]), label)
        yield Sample(catalog.GPU_MEMORY_USED, float(gpu["memory_used_bytes"]), label)


def of_training(jobs: Iterable[Facts]) -> Iterator[Sample]:
    """`jobs`: views of active jobs, as the API shows them."""
    for job in list(jobs)[:MAX_JOBS]:
        label = (str(job["job_id"]),)
        progress, figures = job["progress"], job["metrics"]
        yield Sample(catalog.TRAINING_STEP, float(progress["current_step"]), label)
        yield Sample(catalog.TRAINING_TOTAL_STEPS, float(progress["total_steps"]), label)
        for reported, metric in catalog.TRAINING.items():
            if reported in figures:
                yield Sample(metric, float(figures[reported]), label)


def of_models(jobs: Iterable[Facts]) -> Iterator[Sample]:
    """`jobs`: views of succeeded jobs, the newest first; each is a model."""
    for job in list(jobs)[:MAX_JOBS]:
        if "eval_reward" in job["metrics"]:
            yield Sample(catalog.MODEL_QUALITY, float(job["metrics"]["eval_reward"]), (str(job["job_id"]),))
