"""Data order: once an epoch, disjoint shards, exact resume."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgrpo.rollouts.cursor import DataCursor

sizes = st.integers(1, 40)


@given(num_tasks=sizes, seed=st.integers(0, 5), world=st.integers(1, 5), epochs=st.integers(1, 3))
def test_all_ranks_together_draw_each_task_once_an_epoch(num_tasks: int, seed: int, world: int, epochs: int) -> None:
    total = num_tasks * epochs
    drawn: Counter[int] = Counter()
    for rank in range(world):
        cursor = DataCursor(num_tasks=num_tasks, seed=seed, rank=rank, world_size=world)
        drawn.update(cursor.next(len(range(rank, total, world))))
    assert drawn == dict.fromkeys(range(num_tasks), epochs)


@given(num_tasks=sizes, seed=st.integers(0, 5), first=st.lists(st.integers(0, 7)), then=st.lists(st.integers(0, 7)))
def test_a_resumed_cursor_goes_on_like_an_uninterrupted_one(
    num_tasks: int, seed: int, first: list[int], then: list[int]
) -> None:
    straight = DataCursor(num_tasks=num_tasks, seed=seed, rank=1, world_size=2)
    for n in first:
        straight.next(n)
    resumed = DataCursor(num_tasks=num_tasks, seed=seed, rank=1, world_size=2)
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
    assert [resumed.next(n) for n in then] == [straight.next(n) for n in then]
    assert resumed.epoch == straight.epoch


@given(num_tasks=st.integers(8, 40), counts=st.lists(st.integers(0, 4), min_size=2, max_size=2))
def test_ranks_that_draw_unequally_stay_disjoint_within_an_epoch(num_tasks: int, counts: list[int]) -> None:
    drawn = [DataCursor(num_tasks=num_tasks, seed=1, rank=r, world_size=2).next(n) for r, n in enumerate(counts)]
    assert not set(drawn[0]) & set(drawn[1])


@given(num_tasks=sizes, steps=st.integers(1, 4))
def test_a_step_has_the_same_tasks_for_every_number_of_ranks(num_tasks: int, steps: int) -> None:
    alone = DataCursor(num_tasks=num_tasks, seed=3)
    ranks = [DataCursor(num_tasks=num_tasks, seed=3, rank=r, world_size=2) for r in range(2)]
    for _ in range(steps):
        assert sorted(alone.next(4)) == sorted(ranks[0].next(2) + ranks[1].next(2))


def test_epochs_are_shuffled_differently() -> None:
    cursor = DataCursor(num_tasks=20, seed=0)
    first, second = cursor.next(20), cursor.next(20)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != list(range(20))
    assert cursor.epoch == 2


def test_a_run_resumed_with_more_ranks_continues_behind_what_was_drawn() -> None:
    alone = DataCursor(num_tasks=100, seed=0)
    seen = set(alone.next(10))
    ranks = [DataCursor(num_tasks=100, seed=0, rank=r, world_size=2) for r in range(2)]
    for cursor in ranks:
        cursor.load_state_dict(alone.state_dict())
    assert sorted(ranks[0].next(5) + ranks[1].next(5)) == sorted(alone.next(10))
    assert not seen & set(ranks[0].next(1))


def test_a_position_of_another_data_set_is_refused() -> None:
    state = DataCursor(num_tasks=10, seed=0).state_dict()
    with pytest.raises(ValueError, match="num_tasks: the saved position is for 10, this run has 11"):
        DataCursor(num_tasks=11, seed=0).load_state_dict(state)
    with pytest.raises(ValueError, match="task source is empty"):
        DataCursor(num_tasks=0, seed=0)
