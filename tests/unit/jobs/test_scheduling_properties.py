"""What must hold for every load and policy, on simulated time."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from chatgrpo.jobs.amounts import Amount, Request
from chatgrpo.jobs.config import JobsConfig
from chatgrpo.jobs.scheduling.book import Book
from chatgrpo.jobs.scheduling.plan import plan
from chatgrpo.jobs.scheduling.pools import Task
from chatgrpo.jobs.scheduling.preemption import reclaim
from chatgrpo.jobs.simulation import Load, simulate

OWNERS = ("a/p/u", "a/p/v", "a/q", "b/p", "c", "c")
QUOTAS = [
    {"path": "a", "guarantee": {"cpus": 4}, "limit": {"cpus": 9}},
    {"path": "a/p", "weight": 2.0, "limit": {"cpus": 7}},
    {"path": "b", "guarantee": {"cpus": 3, "gpus": 1}},
    {"path": "c", "max_jobs": 1},
]
NODES = (Amount.of(cpus=4), Amount.of(cpus=4), Amount.of(cpus=4, gpus=2))


@st.composite
def loads(draw: st.DrawFn, most: int = 15) -> list[Load]:
    made = []
    for i in range(draw(st.sampled_from(range(1, most + 1)))):
        cpus, workers = draw(st.integers(1, 3)), draw(st.integers(1, 2))
        gpus = draw(st.sampled_from([0, 0, 0, 1])) if workers == 1 else 0
        elastic = draw(st.booleans())
        runtime_s = float(draw(st.integers(1, 50)))
        task = Task(
            f"j{i:02}",
            draw(st.sampled_from(OWNERS)),
            Request(Amount.of(cpus=cpus, gpus=gpus), workers, workers * 2 if elastic else workers, 4),
            priority=draw(st.integers(0, 3)),
            submitted_at=float(draw(st.integers(0, 60))),
            expected_s=runtime_s if draw(st.booleans()) else math.inf,
        )
        made.append(Load(task, runtime_s))
    return made


policies = st.builds(
    JobsConfig,
    policy=st.sampled_from(["priority", "fair_share"]),
    backfill=st.booleans(),
    preemption=st.booleans(),
    preempt_lower_priority=st.booleans(),
    quotas=st.sampled_from([[], QUOTAS]),
)


def check_no_overcommitment(book: Book, now: float) -> None:
    assert all(min(room) >= 0 for room in book.rooms.free)
    for pool in book.pools():
        assert pool.used.fits(pool.limit)
        assert len(pool.held) <= pool.max_jobs
    on_nodes = [size.minus(free) for size, free in zip(book.size, book.rooms.free, strict=True)]
    assert Amount(*map(sum, zip(*on_nodes, strict=True))) == book.root.used


@settings(max_examples=200, deadline=None)
@given(loads(), policies, st.sampled_from([0.0, 5.0]))
def test_no_overcommitment_and_every_feasible_job_ends(
    work: list[Load], config: JobsConfig, checkpoint_s: float
) -> None:
    outcome = simulate(Book(NODES, config), work, checkpoint_s=checkpoint_s, look=check_no_overcommitment)

    assert set(outcome.ends) == {load.task.id for load in work}, "no starvation: preempted jobs resume too"
    for load in work:
        assert outcome.starts[load.task.id][0] >= load.task.submitted_at


@settings(max_examples=40, deadline=None)
@given(
    policy=st.sampled_from(["priority", "fair_share"]),
    workers=st.integers(1, 3),
    priority=st.integers(0, 3),
    rival=st.sampled_from(["a/p/u", "a/p/v", "c"]),
    backfill=st.booleans(),
)
def test_nobody_starves_while_more_important_jobs_keep_coming(
    policy: str, workers: int, priority: int, rival: str, backfill: bool
) -> None:
    """One that comes `ageing_s` later for each step of priority that it has more is behind, so a wait has an end: what
    is ahead, and what runs already."""
    patient = Load(
        Task("patient", "a/p/u", Request(Amount.of(cpus=4), workers, workers), submitted_at=1.0, priority=0), 5.0
    )
    # Twice of what three nodes of four CPUs can do, for as long as it takes.
    stream = [
        Load(Task(f"s{i:04}", rival, Request(Amount.of(cpus=2)), priority=priority, submitted_at=i * 0.5), 6.0)
        for i in range(600)
    ]
    config = JobsConfig(policy=policy, ageing_s=10.0, backfill=backfill, usage_half_life_s=50.0)

    started = simulate(Book(NODES, config), [patient, *stream]).starts["patient"][0]

    # At 30 s the stream is level with it in rank, having brought 60 jobs, which take 60 s, and what runs ends in 6 s.
    assert started <= 1.0 + 10.0 * priority + 60.0 + 6.0


@settings(max_examples=50, deadline=None)
@given(loads(), policies)
def test_the_same_load_gives_the_same_history(work: list[Load], config: JobsConfig) -> None:
    assert simulate(Book(NODES, config), work) == simulate(Book(NODES, config), work)


@settings(max_examples=50, deadline=None)
@given(loads(), st.integers(1, 3), st.integers(1, 30))
def test_passing_a_blocked_job_never_delays_it(work: list[Load], cpus: int, runtime: int) -> None:
    """The first blocked job starts no later when others may pass it, if everybody tells how long they run."""
    told = [Load(Task(**_fields(load.task, expected_s=load.runtime_s)), load.runtime_s) for load in work]
    big = Load(Task("big", "c", Request(Amount.of(cpus=4), 3, 3), priority=99, submitted_at=5.0, expected_s=9.0), 9.0)
    alone = [load for load in told if load.task.submitted_at < 5.0]

    def start(others: list[Load]) -> float:
        book = Book(NODES, JobsConfig(policy="priority", ageing_s=1e9))
        return simulate(book, [*others, big]).starts["big"][0]

    assert start(told) <= start(alone)


def _fields(task: Task, **changes: object) -> dict[str, object]:
    fixed = Request(task.request.per_worker, task.request.least, task.request.least)
    return {
        "id": task.id,
        "owner": task.owner,
        "request": fixed,
        "priority": task.priority,
        "submitted_at": task.submitted_at,
    } | changes


demands = st.tuples(st.integers(1, 4), st.integers(0, 4))


@settings(max_examples=300, deadline=None)
@given(st.lists(demands, min_size=2, max_size=4), st.integers(8, 30), st.integers(8, 30))
def test_nobody_envies_another_by_more_than_one_task(users: list[tuple[int, int]], cpus: int, memory: int) -> None:
    book = Book([Amount(cpus, 0, memory)], JobsConfig())
    for user, (cpu, mem) in enumerate(users):
        for i in range(31):
            book.submit(Task(f"{user}-{i}", f"u{user}", Request(Amount(cpu, 0, mem)), submitted_at=0.0))

    plan(book, 0.0)

    tasks = [Amount(cpu, 0, mem) for cpu, mem in users]
    counts = [len(book.chain(f"u{user}")[-1].held) for user in range(len(users))]
    for mine, own in zip(tasks, counts, strict=True):
        for theirs, count in zip(tasks, counts, strict=True):
            assert mine.multiples_in(theirs.times(max(0, count - 1))) <= own


@settings(max_examples=100, deadline=None)
@given(st.lists(demands, min_size=2, max_size=4), st.integers(60, 120), st.integers(60, 120))
def test_nobody_has_less_than_an_equal_part_of_the_cluster_would_give(
    users: list[tuple[int, int]], cpus: int, memory: int
) -> None:
    """Sharing pays: of what a user needs most it holds its part, up to one task of everyone."""
    book = Book([Amount(cpus, 0, memory)], JobsConfig())
    for user, (cpu, mem) in enumerate(users):
        for i in range(121):
            book.submit(Task(f"{user}-{i}", f"u{user}", Request(Amount(cpu, 0, mem)), submitted_at=0.0))

    plan(book, 0.0)

    for user, (cpu, mem) in enumerate(users):
        held = len(book.chain(f"u{user}")[-1].held)
        need, whole = max((cpu, cpus), (mem, memory), key=lambda pair: pair[0] / pair[1])
        assert held * need >= whole / len(users) - 4 * len(users)


@st.composite
def crowded(draw: st.DrawFn) -> tuple[Book, Task]:
    """A full cluster of 12 CPUs, and a tenant that asks for what it is guaranteed."""
    guarantees = draw(st.lists(st.integers(1, 4), min_size=2, max_size=3))
    quotas = [{"path": f"t{i}", "guarantee": {"cpus": g}} for i, g in enumerate(guarantees)]
    book = Book([Amount.of(cpus=12)], JobsConfig(quotas=quotas))
    borrowers = [*(f"t{i}" for i in range(1, len(guarantees))), "nobody"]
    for i in range(20):
        cpus = draw(st.integers(1, 3))
        book.submit(
            Task(f"x{i}", draw(st.sampled_from(borrowers)), Request(Amount.of(cpus=cpus)), draw(st.integers(0, 2)))
        )
    plan(book, 0.0)
    wanted = draw(st.integers(1, guarantees[0]))
    return book, Task("claim", "t0", Request(Amount.of(cpus=wanted)), priority=0, submitted_at=1.0)


@settings(max_examples=300, deadline=None)
@given(crowded())
def test_a_tenant_under_its_guarantee_is_served_within_one_round(scene: tuple[Book, Task]) -> None:
    book, claim = scene
    book.submit(claim)

    stops = reclaim(book, plan(book, 1.0).blocks, 1.0)
    before = {pool.path: pool.used for pool in book.pools()}
    for stop in stops:
        held = book.finish(stop.job_id, 2.0)
        guarantee = book.chain(held.task.owner)[1].guarantee
        assert before[held.task.owner].cpu > guarantee.cpu, "only borrowers are stopped"
        book.submit(held.task)
    blocks = plan(book, 2.0).blocks
    assert "claim" in book.held

    rounds = 0
    while stops := reclaim(book, blocks, 3.0):
        rounds += 1
        assert rounds < 10, "they do not stop each other in turns"
        for stop in stops:
            book.submit(book.finish(stop.job_id, 3.0).task)
        blocks = plan(book, 3.0).blocks
    assert "claim" in book.held, "what it has within its guarantee it keeps"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), max_size=12), st.integers(1, 8))
def test_a_gang_is_found_exactly_when_its_workers_fit(taken: list[tuple[int, int]], workers: int) -> None:
    book = Book([Amount(4, 0, 0)] * 4, JobsConfig(backfill=False))
    for i, (cpu, least) in enumerate(taken):
        book.submit(Task(f"t{i}", "a", Request(Amount(cpu), least, least)))
    plan(book, 0.0)
    for per_worker in (Amount(1), Amount(2), Amount(3)):
        placement = book.rooms.find(Request(per_worker, workers, workers), workers=workers)
        fits = sum(per_worker.multiples_in(room) for room in book.rooms.free)
        assert (placement is not None) == (fits >= workers)
        if placement:
            assert sum(count for _, count in placement) == workers
            assert all(per_worker.times(count).fits(book.rooms.free[i]) for i, count in placement)
