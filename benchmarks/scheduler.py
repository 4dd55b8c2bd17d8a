"""The job scheduler in virtual time: Kueue's published load generators, and 100,000 jobs on 10,000 nodes.

The generators are the ones of Kueue's scheduler performance test (kubernetes-sigs/kueue,
test/performance/scheduler/configs, baseline and large-scale): cohorts of queues, each queue with a nominal quota of 20,
a borrowing limit of 100 and reclaim within the cohort; small, medium and large workloads of 1, 5 and 20 units. Here a
cohort is a tenant with a hard limit, a queue a project with a guarantee. No run time is told to the scheduler.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import figure, write_report
from chatgrpo.jobs.amounts import Amount, Request, total
from chatgrpo.jobs.config import JobsConfig
from chatgrpo.jobs.scheduling.book import Book
from chatgrpo.jobs.scheduling.pools import Task
from chatgrpo.jobs.simulation import Load, Outcome, simulate

NOMINAL, BORROWING = 20, 100

AGEING_S = 0.01
"""The trace squeezes hour-long jobs into a second and spreads priorities over 150 steps instead of about ten: the
default of 600 s, squeezed and spread alike."""


@dataclass(frozen=True)
class Workloads:
    name: str
    count: int
    every_ms: int
    runtime_ms: int
    priority: int
    units: int


BASELINE = (
    Workloads("small", 350, 100, 200, 50, 1),
    Workloads("medium", 100, 500, 500, 100, 5),
    Workloads("large", 50, 1200, 1000, 200, 20),
)
LARGE_SCALE = (
    Workloads("small", 20, 20, 50, 50, 1),
    Workloads("medium", 7, 50, 100, 100, 5),
    Workloads("large", 3, 200, 200, 200, 20),
)


def generated(cohorts: int, queues: int, sets: Sequence[Workloads]) -> tuple[list[dict[str, Any]], list[Load]]:
    """Quotas and loads of one generator file."""
    quotas: list[dict[str, Any]] = []
    loads = []
    for cohort in range(cohorts):
        share = {"cpus": NOMINAL * queues}
        quotas.append({"path": f"cohort{cohort}", "guarantee": share, "limit": share})
        for queue in range(queues):
            path = f"cohort{cohort}/queue{queue}"
            limit = {"cpus": min(NOMINAL + BORROWING, NOMINAL * queues)}
            quotas.append({"path": path, "guarantee": {"cpus": NOMINAL}, "limit": limit})
            for kind in sets:
                request = Request(Amount.of(cpus=kind.units))
                for i in range(kind.count):
                    at = (i + 1) * kind.every_ms / 1000
                    task = Task(f"{path}/{kind.name}{i}", path, request, priority=kind.priority, submitted_at=at)
                    loads.append(Load(task, kind.runtime_ms / 1000))
    return quotas, loads


def replay(
    rooms: Sequence[Amount], loads: list[Load], *, look_every_s: float = 0.0, **config: Any
) -> tuple[Outcome, float]:
    """What happened, and the CPU-seconds of the whole simulation."""
    book = Book(rooms, JobsConfig(**config))
    began = time.process_time()
    outcome = simulate(book, loads, look_every_s=look_every_s)
    assert len(outcome.ends) == len(loads), "every job ran to its end"
    return outcome, time.process_time() - began


def ideal_makespan_s(loads: Sequence[Load], units: float) -> float:
    """No scheduler can be faster: all work at full use, or the last arrival run at once."""
    work = sum(load.runtime_s * load.task.request.smallest.cpu / 1000 for load in loads)
    first = min(load.task.submitted_at for load in loads)
    last = max(load.task.submitted_at + load.runtime_s for load in loads)
    return max(work / units, last - first)


def mean_wait_s(outcome: Outcome, loads: Sequence[Load]) -> float:
    """From arrival to end, less the run time: what preemption costs is in it."""
    waits = [outcome.ends[x.task.id] - x.task.submitted_at - x.runtime_s for x in loads]
    return sum(waits) / len(waits)


def jain_index(outcome: Outcome, loads: Sequence[Load], at: float) -> float:
    """Jain's fairness index of the work that each queue has been given by `at`; 1 is perfectly even."""
    done: dict[str, float] = {}
    for load in loads:
        end, units = outcome.ends[load.task.id], load.task.request.smallest.cpu
        done[load.task.owner] = done.get(load.task.owner, 0.0) + (units * load.runtime_s if end <= at else 0.0)
    return sum(done.values()) ** 2 / (len(done) * sum(x * x for x in done.values()))


def cluster(nodes: int) -> list[Amount]:
    """Every fifth node has eight GPUs."""
    with_gpus = Amount.of(cpus=64, gpus=8, memory_gb=512)
    return [with_gpus if i % 5 == 0 else Amount.of(cpus=64, memory_gb=256) for i in range(nodes)]


def mixed(num_jobs: int, rooms: Sequence[Amount], seed: int = 0) -> list[Load]:
    """Gangs of 1 to 16 workers of four shapes from 200 users in 20 tenants, unevenly active; run times log-normal,
    half of them told; arrivals over the time in which the scarcest resource is asked for 5 % more than there is."""
    rng = random.Random(seed)
    shapes = [
        Amount.of(cpus=8, gpus=1, memory_gb=60),
        Amount.of(cpus=4, memory_gb=16),
        Amount.of(cpus=16, memory_gb=64),
        Amount.of(cpus=64, gpus=8, memory_gb=500),
    ]
    drawn, asked = [], [0.0, 0.0, 0.0]
    for _ in range(num_jobs):
        user = min(int(rng.paretovariate(1.1)) - 1, 199)
        shape = rng.choices(shapes, [3, 4, 2, 1])[0]
        workers = rng.choices([1, 2, 4, 8, 16], [8, 4, 3, 2, 1])[0]
        runtime_s = float(round(min(86_400, max(60, rng.lognormvariate(7.5, 1.3)))))
        drawn.append((user, shape, workers, runtime_s, rng.random() < 0.5))
        asked = [have + part * workers * runtime_s for have, part in zip(asked, shape, strict=True)]
    span_s = max(need / have for need, have in zip(asked, total(rooms), strict=True)) / 1.05
    times = sorted(float(round(rng.uniform(0, span_s))) for _ in drawn)
    return [
        Load(
            Task(
                f"j{i}",
                f"tenant{user % 20}/user{user}",
                Request(shape, workers, workers),
                priority=1 + i % 3,
                submitted_at=at,
                expected_s=runtime_s if told else math.inf,
            ),
            runtime_s,
        )
        for i, ((user, shape, workers, runtime_s, told), at) in enumerate(zip(drawn, times, strict=True))
    ]


def kueue_figures() -> dict[str, Any]:
    quotas, loads = generated(5, 6, BASELINE)
    units = 5 * 6 * NOMINAL
    rooms = [Amount.of(cpus=units)]
    ours, cpu_s = replay(rooms, loads, quotas=quotas, ageing_s=AGEING_S)
    ideal_s = ideal_makespan_s(loads, units)
    plain = {"policy": "priority", "backfill": False, "preemption": False}
    limits = [{k: v for k, v in quota.items() if k != "guarantee"} for quota in quotas]
    # One queue in order of arrival: an hour of age outweighs any priority. In order of priority: no age does.
    fifo, _ = replay(rooms, loads, **plain, quotas=limits, ageing_s=1e-6)
    priority, _ = replay(rooms, loads, **plain, quotas=limits, ageing_s=1e9)
    wait_s = mean_wait_s(ours, loads)
    half = ours.makespan_s / 2
    return {
        "cpu_s_15k": figure(cpu_s, "CPU s", at_most=5.0, jobs=len(loads), looks=ours.decisions),
        "makespan_vs_ideal_15k": figure(
            ours.makespan_s / ideal_s, "ratio", at_most=1.2, makespan_s=ours.makespan_s, ideal_s=ideal_s
        ),
        "jain_index": figure(jain_index(ours, loads, half), "index", fifo=jain_index(fifo, loads, half)),
        "mean_wait_vs_fifo": figure(
            wait_s / mean_wait_s(fifo, loads), "ratio", at_most=1.0, wait_s=wait_s, fifo_s=mean_wait_s(fifo, loads)
        ),
        "mean_wait_vs_priority": figure(
            wait_s / mean_wait_s(priority, loads), "ratio", at_most=1.0, priority_s=mean_wait_s(priority, loads)
        ),
        "preemptions_15k": figure(ours.preemptions, "jobs"),
    }


def large_scale_figures() -> dict[str, Any]:
    """30 workloads a queue: the published 2,000 queues make 60,000, 1,660 queues 50,000."""
    figures = {}
    for label, queues in (("50k", 1660), ("60k", 2000)):
        quotas, loads = generated(20, queues // 20, LARGE_SCALE)
        units = 20 * queues // 20 * NOMINAL
        outcome, cpu_s = replay([Amount.of(cpus=units)], loads, quotas=quotas, ageing_s=AGEING_S)
        ideal_s = ideal_makespan_s(loads, units)
        figures[f"cpu_s_{label}"] = figure(cpu_s, "CPU s", jobs=len(loads))
        figures[f"makespan_vs_ideal_{label}"] = figure(outcome.makespan_s / ideal_s, "ratio", ideal_s=ideal_s)
    return figures


def cluster_figures() -> dict[str, Any]:
    cpu_s: dict[int, float] = {}
    for num_jobs, nodes in ((25_000, 2_500), (100_000, 10_000)):
        rooms = cluster(nodes)
        _, cpu_s[num_jobs] = replay(rooms, mixed(num_jobs, rooms), look_every_s=10.0)
    small, large = cpu_s[25_000], cpu_s[100_000]
    n_log_n = 4 * math.log(100_000) / math.log(25_000)
    return {
        "cpu_s_100k_10knodes": figure(large, "CPU s", us_per_job=large / 0.1, look_every_s=10.0),
        "growth_25k_to_100k_vs_n_log_n": figure(large / small / n_log_n, "ratio", at_most=1.0, cpu_s_25k=small),
    }


if __name__ == "__main__":
    write_report("scheduler", {**kueue_figures(), **large_scale_figures(), **cluster_figures()})
