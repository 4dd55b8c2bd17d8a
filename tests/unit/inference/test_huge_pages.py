"""Memory that is handed out in pieces: dense, apart from each other, alive as long as somebody holds a piece."""

from __future__ import annotations

import torch

from chatgrpo.inference.huge_pages import HugePages, huge


def test_pieces_are_aligned_and_lie_apart() -> None:
    pages = HugePages()
    pieces = [pages.empty(3, 5), pages.empty(1), pages.empty(7, 2, 11), pages.empty(20 * 2**20), pages.empty(4)]
    for number, piece in enumerate(pieces):
        assert piece.is_contiguous()
        assert piece.data_ptr() % 64 == 0
        piece.fill_(number)
    assert [int(p.unique()) for p in pieces] == [0, 1, 2, 3, 4]
    assert [tuple(p.shape) for p in pieces[:3]] == [(3, 5), (1,), (7, 2, 11)]


def test_what_was_handed_out_outlives_a_new_beginning() -> None:
    pages = HugePages()
    old = pages.empty(1000).fill_(1.0)
    pages.clear()
    new = pages.empty(1000).fill_(2.0)
    assert bool((old == 1.0).all())
    assert bool((new == 2.0).all())


def test_asking_for_large_pages_changes_no_tensor() -> None:
    for count in (0, 1, 1000, 3 * 2**20):
        tensor = torch.arange(count)
        assert huge(tensor) is tensor
        assert torch.equal(tensor, torch.arange(count))
