"""Amounts of resources in whole units, so that sums are exact: thousandths of a CPU and of a GPU, mebibytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Amount(NamedTuple):
    cpu: int = 0
    gpu: int = 0
    memory: int = 0

    def plus(self, other: Amount) -> Amount:
        return Amount(self[0] + other[0], self[1] + other[1], self[2] + other[2])

    def minus(self, other: Amount) -> Amount:
        return Amount(self[0] - other[0], self[1] - other[1], self[2] - other[2])

    def times(self, count: int) -> Amount:
        return Amount(self[0] * count, self[1] * count, self[2] * count)

    def fits(self, room: Amount) -> bool:
        return self[0] <= room[0] and self[1] <= room[1] and self[2] <= room[2]

    def least(self, other: Amount) -> Amount:
        return Amount(min(self[0], other[0]), min(self[1], other[1]), min(self[2], other[2]))

    def floor(self) -> Amount:
        """Negative parts raised to 0."""
        return Amount(max(0, self[0]), max(0, self[1]), max(0, self[2]))

    def multiples_in(self, room: Amount) -> int:
        """How many times this fits into `room`; a billion when it asks for nothing."""
        times = 10**9
        if self[0]:
            times = room[0] // self[0]
        if self[1] and room[1] // self[1] < times:
            times = room[1] // self[1]
        if self[2] and room[2] // self[2] < times:
            times = room[2] // self[2]
        return times

    def share_of(self, whole: Amount) -> float:
        """The dominant share: the largest part of any resource of `whole`. 0 of a resource that is not there."""
        cpu = self[0] / whole[0] if whole[0] else 0.0
        gpu = self[1] / whole[1] if whole[1] else 0.0
        memory = self[2] / whole[2] if whole[2] else 0.0
        return max(cpu, gpu, memory)

    def __str__(self) -> str:
        parts = [f"{self.cpu / 1000:g} CPU"]
        if self.gpu:
            parts.append(f"{self.gpu / 1000:g} GPU")
        if self.memory:
            parts.append(f"{self.memory / 1024:g} GB")
        return ", ".join(parts)

    @classmethod
    def of(cls, *, cpus: float = 0.0, gpus: float = 0.0, memory_gb: float = 0.0) -> Amount:
        return cls(round(cpus * 1000), round(gpus * 1000), round(memory_gb * 1024))


NOTHING = Amount()
UNLIMITED = Amount(10**12, 10**12, 10**12)


def total(amounts: Iterable[Amount]) -> Amount:
    result = NOTHING
    for amount in amounts:
        result = result.plus(amount)
    return result


@dataclass(frozen=True, slots=True)
class Request:
    """What a job needs to run: a gang of `least` to `most` equal workers, all or none. A training worker and the
    rollout workers beside it are one. Worker counts in between must divide `splits` (the tasks of a step, dealt out
    equally); 0: any count."""

    per_worker: Amount
    least: int = 1
    most: int = 1
    splits: int = 0

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Request:
        """The request of a TrainConfig as JSON whose resources were completed at submit."""
        workers = int(config.get("num_workers", 1))
        beside = _of_resources(config.get("rollout_resources", {})).times(int(config.get("rollout_workers") or 0))
        per_worker = _of_resources(config.get("resources", {})).plus(beside)
        least = min(int(config.get("min_workers") or workers), workers)
        return cls(per_worker, least, workers, int(config.get("prompts_per_step", 0)) if least < workers else 0)

    @property
    def smallest(self) -> Amount:
        return self.per_worker.times(self.least)

    def counts(self) -> list[int]:
        """The worker counts that this gang may have, largest first. `least` is always one of them."""
        between = range(self.most, self.least, -1)
        return [n for n in between if not self.splits or self.splits % n == 0] + [self.least]


def _of_resources(resources: Mapping[str, Any]) -> Amount:
    return Amount.of(
        cpus=resources.get("cpus_per_worker") or 0.0,
        gpus=resources.get("gpus_per_worker") or 0.0,
        memory_gb=resources.get("memory_gb_per_worker") or 0.0,
    )


@dataclass(frozen=True, slots=True)
class Node:
    """One machine: what it has, and what of it is free now."""

    id: str
    has: Amount
    free: Amount
