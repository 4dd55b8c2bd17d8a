"""A tape's budget is what it holds, also where forwards of unlike sizes leave the end of a block unused."""

from __future__ import annotations

import pytest

from chatgrpo.inference.activation_tape import ActivationTape
from chatgrpo.inference.llama_weights import LlamaWeights
from chatgrpo.inference.loading import LoadedModel


def held_tokens(tape: ActivationTape) -> int:
    return sum(block.num_tokens for block in tape._blocks)


@pytest.mark.parametrize("sizes", [[129] * 9, [300, *([32] * 30)], list(range(200, 0, -1)), [1000], [7] * 142])
def test_blocks_stay_within_the_budget_and_slots_are_never_shared(tiny: LoadedModel, sizes: list[int]) -> None:
    weights = LlamaWeights.of(tiny.model)
    assert weights is not None
    tape = ActivationTape(weights, max_tokens=1000)
    taken: list[int] = []
    for size in sizes:
        if (recorded := tape.record(size)) is not None:
            recorder, slots = recorded
            assert recorder.views()[0].shape[1] == len(slots) == size
            taken += slots
        assert held_tokens(tape) <= 1000
    assert len(set(taken)) == len(taken) > 700
    tape.clear()
    assert held_tokens(tape) == 0


def test_forwards_of_one_size_leave_nothing_unused(tiny: LoadedModel) -> None:
    weights = LlamaWeights.of(tiny.model)
    assert weights is not None
    tape = ActivationTape(weights, max_tokens=129 * 7)
    assert all(tape.record(129) is not None for _ in range(7))
    assert tape.record(1) is None
    assert held_tokens(tape) == 129 * 7
