"""The breaker as values: when it opens, for how long, who probes, what closes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgrpo.resilience.circuit import Circuit, State, Window, decide, open_for, probed, probing
from chatgrpo.resilience.config import BreakerConfig

CONFIG = BreakerConfig(window_s=10, min_calls=4, error_rate=0.5, open_s=5, max_open_s=30, num_probes=2)


def test_closed_lets_everything_through() -> None:
    assert decide(None, CONFIG, 0.0).is_admitted


def test_open_half_open_closed() -> None:
    circuit: Circuit | None = Circuit(opened_at=100)
    assert circuit is not None
    refused = decide(circuit, CONFIG, 102)
    assert (refused.state, refused.is_admitted, refused.retry_after_s) == (State.OPEN, False, 3)
    first = decide(circuit, CONFIG, 105)
    assert (first.state, first.is_admitted) == (State.HALF_OPEN, True)
    circuit = probing(circuit, 105)
    assert not decide(circuit, CONFIG, 106).is_admitted, "one probe at a time"
    circuit = probed(circuit, CONFIG, 107, is_good=True)
    assert circuit is not None
    assert decide(circuit, CONFIG, 107).is_admitted
    assert probed(probing(circuit, 107), CONFIG, 108, is_good=True) is None


def test_a_bad_probe_opens_it_for_twice_as_long() -> None:
    circuit = probed(probing(Circuit(opened_at=0), 5), CONFIG, 6, is_good=False)
    assert circuit == Circuit(opened_at=6, num_openings=2)
    assert [decide(circuit, CONFIG, now).state for now in (15.9, 16)] == [State.OPEN, State.HALF_OPEN]


def test_a_probe_that_never_answers_is_given_up() -> None:
    circuit = probing(Circuit(opened_at=0), 5)
    assert [decide(circuit, CONFIG, now).is_admitted for now in (64.9, 65)] == [False, True]


@pytest.mark.parametrize(("num_openings", "seconds"), [(1, 5), (2, 10), (3, 20), (4, 30), (5000, 30)])
def test_open_time_grows_to_its_limit(num_openings: int, seconds: float) -> None:
    assert open_for(num_openings, CONFIG) == seconds


def test_the_rate_counts_from_enough_calls_on() -> None:
    window = Window(CONFIG)
    for is_good in (False, False, False):
        window.add(0, is_good=is_good)
    assert not window.must_open(0)
    window.add(0, is_good=True)
    assert window.must_open(0)
    window.add(1, is_good=True)
    for _ in range(2):
        window.add(1, is_good=True)
    assert (window.must_open(1), window.counts(1)) == (False, (7, 3))
    assert window.counts(10.5) == (3, 0), "the first second is forgotten"


@given(st.lists(st.tuples(st.floats(0, 3, allow_nan=False), st.booleans()), max_size=200))
def test_a_window_counts_the_calls_of_its_length(steps: list[tuple[float, bool]]) -> None:
    """Never a call older than the window, always those of its newest nine tenths."""
    window, now = Window(CONFIG), 0.0
    calls: list[tuple[float, bool]] = []
    for step, is_good in steps:
        now += step
        window.add(now, is_good=is_good)
        calls.append((now, is_good))
        num_calls, num_failed = window.counts(now)
        within = [good for at, good in calls if at > now - 10]
        surely = [good for at, good in calls if at > now - 9]
        assert len(surely) <= num_calls <= len(within)
        assert surely.count(False) <= num_failed <= within.count(False)
