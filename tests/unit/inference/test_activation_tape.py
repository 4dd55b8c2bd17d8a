"""A tape's budget is what it holds, and its memory serves one rollout after the other."""

from __future__ import annotations

import pytest
import torch

from chatgrpo.inference.activation_tape import ActivationTape
from chatgrpo.inference.llama_weights import LlamaWeights
from chatgrpo.inference.loading import LoadedModel


def tape_of(tiny: LoadedModel, max_tokens: int) -> ActivationTape:
    weights = LlamaWeights.of(tiny.model)
    assert weights is not None
    return ActivationTape(weights, max_tokens=max_tokens)


@pytest.mark.parametrize("sizes", [[129] * 9, [300, *([32] * 30)], list(range(200, 0, -1)), [1000], [7] * 142])
def test_slots_stay_within_the_budget_and_are_never_shared(tiny: LoadedModel, sizes: list[int]) -> None:
    tape = tape_of(tiny, 1000)
    taken: list[int] = []
    for size in sizes:
        recorded = tape.record(size)
        if recorded is None:
            assert len(taken) + size > 1000
        else:
            recorder, slots = recorded
            assert recorder.views()[0].shape[1] == len(slots) == size
            taken += slots
    assert len(set(taken)) == len(taken) > 850
    assert max(taken) < 1000


def test_chosen_tokens_come_in_their_order_whether_or_not_in_one_piece(tiny: LoadedModel) -> None:
    tape = tape_of(tiny, 20)
    recorded = tape.record(10)
    assert recorded is not None
    for view in recorded[0].views():
        view.copy_(torch.arange(10.0)[None, :, None].expand_as(view))
    for slots in ([3, 4, 5], [5, 3, 4], [4], [9, 0]):
        recording = tape.recording(torch.tensor(slots))
        for index in (0, 1):
            kept = recording.layer(index)
            for field in (kept.x, kept.qkv, kept.middle, kept.gate_up, recording.last()):
                assert field[:, 0].tolist() == field[:, -1].tolist() == slots


def test_a_cleared_tape_uses_its_memory_again_and_a_released_one_gives_it_back(tiny: LoadedModel) -> None:
    tape = tape_of(tiny, 20)

    def first_place() -> int:
        recorded = tape.record(20)
        assert recorded is not None
        assert tape.record(1) is None
        return recorded[0].views()[0].data_ptr()

    tape.remember([1, 2], [0, 1])
    place = first_place()
    tape.clear()
    assert tape.find([1, 2]) is None
    assert first_place() == place
    tape.release()
    assert tape._memory is None
    first_place()
