"""How much of a device an update used, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chatgrpo.training.utilization import memory_bytes, num_update_tokens, peak_flops, update_mfu, weight_lag


def episode(prompt: int, reply: int, *versions: int) -> Any:
    turns = tuple(SimpleNamespace(weight_version=version) for version in versions)
    return SimpleNamespace(prompt_length=prompt, token_ids=tuple(range(prompt + reply)), turns=turns)


def test_a_prompt_counts_once_for_its_group_and_what_teaches_nothing_not_at_all() -> None:
    groups = [[episode(10, 3), episode(10, 5), episode(10, 7)], [episode(10, 3), episode(10, 5)]]
    assert num_update_tokens(groups, [[1.0, 0.0, -1.0], [0.0, 0.0]]) == 10 + 3 + 7


@pytest.mark.parametrize(("trains_all", "expected"), [(True, 0.6), (False, 0.4)])
def test_mfu_is_flops_over_time_and_peak(trains_all: bool, expected: float) -> None:
    found = update_mfu(1000, 2.0, num_parameters=10**8, trains_all=trains_all, num_iterations=2, peak=1e12)
    assert found == pytest.approx(expected)


def test_weights_of_an_earlier_step_lag() -> None:
    group: Any = SimpleNamespace(episodes=[episode(1, 1, 7, 5), episode(1, 1, 7)])
    assert [weight_lag([group], 7), weight_lag([], 7)] == [2, 0]


def test_a_cpu_has_a_measured_peak_and_its_process_memory() -> None:
    assert peak_flops("cpu", torch.float32) > 1e8
    assert memory_bytes("cpu") > 10**7
