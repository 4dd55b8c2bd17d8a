"""Who plays what, and what a step may train on."""

from __future__ import annotations

import random

import pytest

from chatgrpo.rollouts.dispatch import Decision, Facts, Flight, Held, Rules, Seat, decide, spacing_s


def seat(worker: str = "a", *, version: int = 0, num_groups: int = 0, capacity: int = 8) -> Seat:
    return Seat(worker=worker, version=version, num_groups=num_groups, capacity=capacity)


def asked(
    *,
    step: int = 0,
    k: int = 1,
    wanted: int = 2,
    seats: tuple[Seat, ...] = (),
    flights: tuple[tuple[int, int], ...] = (),
    held: tuple[tuple[int, int], ...] = (),
    useless: tuple[int, ...] = (),
    max_set_aside: int = 0,
    num_set_aside: int = 0,
    may_play_ahead: bool = True,
) -> Decision:
    """`flights` and `held` as (number, version)."""
    facts = Facts(
        step=step,
        seats=seats,
        flights=[Flight(number=n, version=v) for n, v in flights],
        held=[Held(number=n, version=v, teaches=n not in useless) for n, v in held],
        num_set_aside=num_set_aside,
        may_play_ahead=may_play_ahead,
    )
    return decide(facts, Rules(wanted=wanted, max_staleness=k, total_steps=10, max_set_aside=max_set_aside))


def test_groups_go_where_most_is_free_and_only_as_far_ahead_as_may_be() -> None:
    seats = (seat("a"), seat("b", num_groups=1, capacity=4))
    assert asked(seats=seats).send == ("a", "a", "a", "b")
    assert asked(k=0, seats=seats).send == ("a", "a")
    assert asked(k=0, seats=seats, flights=((0, 0), (1, 0))).send == ()
    assert asked(seats=(seat(capacity=3),)).send == ("a", "a", "a")
    # During the update of step 0 (its groups are taken, the weights are still version 0).
    assert asked(step=1, k=0, seats=seats).send == ()
    assert asked(step=1, k=1, seats=seats).send == ("a", "a")
    # A worker whose weights are too old for the next step gets nothing, another one does.
    assert asked(step=3, k=1, seats=(seat("a", version=1), seat("b", version=3))).send == ("b",) * 4
    # No step comes after the tenth.
    assert asked(step=9, k=1, seats=(seat(version=9),)).send == ("a", "a")


def test_groups_of_the_next_step_begin_at_once_and_those_beyond_it_when_it_is_time() -> None:
    assert asked(seats=(seat(),), may_play_ahead=False).send == ("a", "a")
    assert asked(seats=(seat(),), flights=((0, 0),), held=((1, 0),), may_play_ahead=False).send == ()
    assert asked(seats=(seat(),), flights=((0, 0),), held=((1, 0),)).send == ("a", "a")
    rules = Rules(wanted=2, max_staleness=1, total_steps=10)
    assert spacing_s([], 2, rules) == spacing_s([1.0, 5.0], 2, rules) == 0
    assert spacing_s([0.0, 1.0, 5.0, 6.0], 2, rules) == pytest.approx(2.0)
    assert spacing_s([0.0, 1.0, 5.0, 6.0], 1, rules) == pytest.approx(1.0)


def test_a_step_takes_what_is_due_first_and_waits_for_what_would_be_too_old() -> None:
    assert asked(held=((0, 0),)).take is None
    assert asked(held=((3, 0), (0, 0)), flights=((1, 0), (2, 0))).take == (0, 3)
    # Step 1 is the last that may train on 1 and 2.
    late = ((4, 1), (5, 1))
    assert asked(step=1, held=late, flights=((1, 0), (2, 0))).take is None
    assert asked(step=1, held=(*late, (1, 0)), flights=((2, 0),)).take is None
    assert asked(step=1, held=(*late, (1, 0), (2, 0))).take == (1, 2)


def test_with_more_staleness_the_steps_to_come_count_too() -> None:
    # Of b, c, both due in step 2, one must go in step 1 already, though nothing is due there.
    assert asked(step=1, k=2, wanted=1, held=((3, 1),), flights=((1, 0), (2, 0))).take is None
    assert asked(step=1, k=2, wanted=1, held=((3, 1), (1, 0)), flights=((2, 0),)).take == (1,)


def test_what_is_too_old_is_played_again_and_equal_rewards_are_replaced_within_a_bound() -> None:
    found = asked(step=2, held=((0, 0), (1, 1), (2, 2)))
    assert (found.stale, found.take) == ((0,), (1, 2))
    found = asked(held=((0, 0), (1, 0)), useless=(0, 1), max_set_aside=2, num_set_aside=1, seats=(seat(),))
    # One more may be replaced: then three new groups fit beside the one that stays.
    assert (found.set_aside, found.take, len(found.send)) == ((0,), None, 3)
    assert asked(held=((0, 0), (1, 0)), useless=(0, 1), max_set_aside=2, num_set_aside=2).take == (0, 1)


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("wanted", [1, 3])
def test_whatever_happens_nothing_is_stale_lost_or_doubled(k: int, wanted: int) -> None:
    """A thousand random events: workers finish in any order, load weights late, die."""
    for seed in range(8):
        trained = _simulate(random.Random(f"{seed}/{k}/{wanted}"), k=k, wanted=wanted, steps=25)
        assert len(trained) == len(set(trained)) == 25 * wanted


def _simulate(rng: random.Random, *, k: int, wanted: int, steps: int) -> list[int]:
    rules = Rules(wanted=wanted, max_staleness=k, total_steps=steps)
    versions = {"a": 0, "b": 0}
    flights: dict[int, tuple[str, int]] = {}
    held: dict[int, int] = {}
    waiting: list[int] = []
    drawn = step = learner = 0
    trained: list[int] = []
    for _ in range(100_000):
        seats = [
            Seat(worker=w, version=v, capacity=4, num_groups=sum(f[0] == w for f in flights.values()))
            for w, v in versions.items()
        ]
        facts = Facts(
            step=step,
            seats=seats,
            flights=[Flight(number=n, version=v) for n, (_, v) in flights.items()],
            held=[Held(number=n, version=v) for n, v in held.items()],
            may_play_ahead=rng.random() < 0.5,
        )
        decision = decide(facts, rules)
        assert decision.stale == ()
        for worker in decision.send:
            number = waiting.pop(0) if waiting else drawn
            drawn += number == drawn
            flights[number] = (worker, versions[worker])
        event = rng.choice(["finish", "finish", "load", "die", "learn", "train"])
        if event == "finish" and flights:
            number = rng.choice(sorted(flights))
            _, version = flights.pop(number)
            # The weights may have changed before its first token, but never to ones that the learner has not made.
            held[number] = rng.randint(version, learner)
        elif event == "load":
            worker = rng.choice(sorted(versions))
            versions[worker] = rng.randint(versions[worker], learner)
        elif event == "die" and rng.random() < 0.2:
            lost = [n for n, (worker, _) in flights.items() if worker == "a"]
            waiting = sorted([*waiting, *lost])
            for number in lost:
                del flights[number]
            versions["a"] = learner
        elif event == "train" and step == learner and step < steps and decision.take is not None:
            for number in decision.take:
                version = held.pop(number)
                assert step - version <= k
                trained.append(number)
            step += 1
        elif event == "learn" and learner < step:
            learner = step
        if learner == steps:
            return trained
    raise AssertionError(f"stuck at step {step}: {flights} {held}")
