"""Calls with deadlines on threads that can be written off."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from chatgrpo.resilience.deadline_pool import DeadlinePool


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_results_and_exceptions_come_back() -> None:
    with DeadlinePool(max_threads=2, name="t") as pool:
        assert [f.result(timeout=30) for f in [pool.submit(lambda n=n: n * n, timeout_s=30) for n in range(20)]] == [
            n * n for n in range(20)
        ]
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda: 1 / 0, timeout_s=30).result(timeout=30)


def test_no_more_than_max_threads_run_at_once(release: threading.Event) -> None:
    with DeadlinePool(max_threads=2, name="t") as pool:
        both = threading.Barrier(3)
        for _ in range(2):
            pool.submit(lambda: (both.wait(30), release.wait(30)), timeout_s=60)
        third = pool.submit(lambda: "third", timeout_s=60)
        both.wait(30)
        assert not third.running()
        assert not third.done()
        release.set()
        assert third.result(timeout=30) == "third"


def test_hung_threads_are_replaced(release: threading.Event) -> None:
    with DeadlinePool(max_threads=1, name="t") as pool:
        hanging = pool.submit(release.wait, timeout_s=0.02)
        behind = pool.submit(lambda: "went on", timeout_s=30)
        with pytest.raises(TimeoutError, match=r"no answer within 0\.02 s"):
            hanging.result(timeout=30)
        assert behind.result(timeout=30) == "went on"


def test_beyond_max_hung_new_calls_fail_at_once_until_one_comes_back() -> None:
    ends = [threading.Event(), threading.Event()]
    with DeadlinePool(max_threads=1, name="t", max_hung=2) as pool:
        for end in ends:
            with pytest.raises(TimeoutError):
                pool.submit(end.wait, timeout_s=0.02).result(timeout=30)
        with pytest.raises(TimeoutError, match="2 earlier calls still hang"):
            pool.submit(lambda: 1, timeout_s=30).result(timeout=0)
        for end in ends:
            end.set()
        while any(thread.name == "t" for thread in threading.enumerate()):
            [thread.join(30) for thread in threading.enumerate() if thread.name == "t"]
        assert pool.submit(lambda: 1, timeout_s=30).result(timeout=30) == 1


def test_a_closed_pool_takes_nothing_and_its_threads_end() -> None:
    pool = DeadlinePool(max_threads=2, name="closing")
    assert pool.submit(lambda: 1, timeout_s=30).result(timeout=30) == 1
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(lambda: 1, timeout_s=30)
    for thread in threading.enumerate():
        if thread.name.startswith("closing"):
            thread.join(30)
            assert not thread.is_alive()
