"""Balancing strategies as values, and a simulation in which one replica is slow, dies and comes back."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgrpo.gateway.balancing import STICKY_SLACK, STRATEGIES, Candidate, Ledger, Strategy, Turn


def ids(strategy: Strategy, candidates: list[Candidate], **turn: object) -> list[str]:
    facts = {"number": 0, "now": 100.0} | turn
    return [candidate.id for candidate in STRATEGIES[strategy](candidates, Turn(**facts))]  # type: ignore[arg-type]


def three(**fields: tuple[float, float, float]) -> list[Candidate]:
    return [Candidate(id=str(i), **{name: values[i] for name, values in fields.items()}) for i in range(3)]  # type: ignore[arg-type]


def test_round_robin_takes_turns() -> None:
    chosen = [ids(Strategy.ROUND_ROBIN, three(), number=number)[0] for number in range(7)]
    assert chosen == ["0", "1", "2", "0", "1", "2", "0"]


def test_least_connections() -> None:
    assert ids(Strategy.LEAST_CONNECTIONS, three(in_flight=(2, 0, 1))) == ["1", "2", "0"]
    assert ids(Strategy.LEAST_CONNECTIONS, three(in_flight=(1, 1, 1)), draw=0.5) == ["1", "2", "0"], "ties are drawn"


def test_weighted_is_in_proportion_and_spread_out() -> None:
    ledger, chosen = Ledger(), ""
    for number in range(12):
        found = ledger.candidates({"a": {"weight": 3}, "b": {"weight": 1}, "c": {"weight": 2}, "d": {"weight": 0}})
        first = ids(Strategy.WEIGHTED, found)[0]
        ledger.routed(first, str(number), now=0)
        chosen += first
    assert Counter(chosen) == {"a": 6, "c": 4, "b": 2}
    assert "aaa" not in chosen
    assert ids(Strategy.WEIGHTED, [Candidate(id="only", weight=0)]) == ["only"]


def test_latency_is_what_one_would_wait() -> None:
    fast_but_busy = three(latency_s=(0.1, 0.4, 9.0), in_flight=(5, 0, 1), measured_at=(100, 100, 100))
    assert ids(Strategy.LATENCY, fast_but_busy) == ["1", "0", "2"]


def test_latency_tries_the_unknown_once_and_the_slow_again() -> None:
    unknown = [Candidate(id="old", latency_s=0.1, measured_at=100), Candidate(id="new")]
    assert ids(Strategy.LATENCY, unknown)[0] == "new"
    assert ids(Strategy.LATENCY, [unknown[0], Candidate(id="new", in_flight=1)])[0] == "old"
    slow = [Candidate(id="fast", latency_s=0.1, measured_at=180), Candidate(id="slow", latency_s=10, measured_at=100)]
    assert ids(Strategy.LATENCY, slow, now=110)[0] == "fast"
    assert ids(Strategy.LATENCY, slow, now=181)[0] == "slow", "after 8 half-lives it is worth a try"
    being_probed = [slow[0], Candidate(id="slow", latency_s=10, measured_at=100, in_flight=1)]
    assert ids(Strategy.LATENCY, being_probed, now=181)[0] == "fast"


def test_resource_aware_goes_where_room_is() -> None:
    assert ids(Strategy.RESOURCE_AWARE, three(load=(0.8, 0.1, 0.97))) == ["1", "0", "2"]
    assert ids(Strategy.RESOURCE_AWARE, three(load=(0.5, 0.1, 0.99), in_flight=(0, 3, 0)))[0] == "0"


def test_sticky_stays_until_its_place_is_crowded() -> None:
    (home, *_) = ids(Strategy.STICKY_LEAST_LOADED, three(), session="talk")
    crowded = [Candidate(id=str(i), in_flight=STICKY_SLACK + 1 if str(i) == home else 0) for i in range(3)]
    assert ids(Strategy.STICKY_LEAST_LOADED, crowded, session="talk")[0] != home
    busy = [Candidate(id=str(i), in_flight=STICKY_SLACK if str(i) == home else 0) for i in range(3)]
    assert ids(Strategy.STICKY_LEAST_LOADED, busy, session="talk")[0] == home
    assert ids(Strategy.STICKY_LEAST_LOADED, three(in_flight=(1, 0, 2)))[0] == "1", "without a session"


def test_when_a_replica_goes_only_its_conversations_move() -> None:
    sessions = [f"talk {i}" for i in range(300)]
    before = {s: ids(Strategy.STICKY_LEAST_LOADED, three(), session=s)[0] for s in sessions}
    after = {s: ids(Strategy.STICKY_LEAST_LOADED, three()[:2], session=s)[0] for s in sessions}
    assert all(after[s] == home for s, home in before.items() if home != "2")
    assert min(Counter(before.values()).values()) > 60, "spread over all"


@given(
    st.sampled_from(Strategy),
    st.lists(
        st.builds(
            Candidate,
            id=st.text(max_size=4),
            in_flight=st.integers(0, 9),
            weight=st.floats(0, 9),
            latency_s=st.none() | st.floats(0, 9),
            load=st.floats(0, 1),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda candidate: candidate.id,
    ),
    st.floats(0, 1, exclude_max=True),
    st.none() | st.text(max_size=3),
)
def test_every_strategy_orders_all_candidates(
    strategy: Strategy, candidates: list[Candidate], draw: float, session: str | None
) -> None:
    assert sorted(ids(strategy, candidates, draw=draw, session=session)) == sorted(c.id for c in candidates)


@pytest.mark.parametrize("strategy", [Strategy.LATENCY, Strategy.LEAST_CONNECTIONS])
def test_a_slow_replica_gets_few_and_a_dead_one_none(strategy: Strategy) -> None:
    """1000 requests, one every 10 ms of virtual time; `slow` takes 20 times longer, `dies` goes at second 5."""
    takes_s = {"fast": 0.02, "dies": 0.02, "slow": 0.4}
    ledger, under_way, given_to = Ledger(), [], Counter[str]()
    for number in range(1000):
        now = number / 100
        for end, request in [item for item in under_way if item[0] <= now]:
            ledger.completed(request, now=end)
        under_way = [item for item in under_way if item[0] > now]
        alive = [id_ for id_ in takes_s if id_ != "dies" or now < 5]
        ledger.keep_only(alive)
        found = ledger.candidates({id_: {} for id_ in alive})
        chosen = ids(strategy, found, now=now, number=number, draw=number % 10 / 10)[0]
        ledger.routed(chosen, str(number), now=now)
        under_way.append((now + takes_s[chosen], str(number)))
        given_to[chosen] += 1
        assert chosen in alive
    assert 1 <= given_to["slow"] < 100
    assert given_to["fast"] > given_to["dies"] > 200


def test_the_ledger_averages_and_forgets() -> None:
    ledger = Ledger()
    for number, took in enumerate((1.0, 2.0)):
        ledger.routed("a", str(number), now=10.0)
        ledger.completed(str(number), now=10.0 + took)
    ledger.routed("a", "open", now=20.0)
    (seen,) = ledger.candidates({"a": {"load": 0.5}})
    assert (seen.in_flight, seen.latency_s, seen.measured_at, seen.load) == (1, pytest.approx(1.3), 12.0, 0.5)
    ledger.keep_only(["b"])
    ledger.completed("open", now=30.0)
    assert ledger.candidates({"a": {}}) == [Candidate(id="a")]


def test_who_joins_later_does_not_get_everything() -> None:
    ledger = Ledger()
    for number in range(100):
        ledger.candidates({"a": {}, "b": {}})
        ledger.routed("ab"[number % 2], str(number), now=0)
    chosen = []
    for number in range(9):
        found = ledger.candidates({"a": {}, "b": {}, "new": {}})
        chosen.append(ids(Strategy.WEIGHTED, found)[0])
        ledger.routed(chosen[-1], f"later {number}", now=0)
    assert Counter(chosen) == {"a": 3, "b": 3, "new": 3}
    assert all(left != right for left, right in pairwise(chosen))
