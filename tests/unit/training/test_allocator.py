from __future__ import annotations

import pytest

from chatgrpo.training.allocator import allocator_environment


@pytest.mark.parametrize("libc", ["glibc 2.35", "glibc 2.36", "glibc 3.0"])
def test_a_glibc_that_takes_such_thresholds_is_told_of_them(libc: str) -> None:
    tunables = allocator_environment(libc)["GLIBC_TUNABLES"].split(":")
    assert "glibc.malloc.arena_max=1" in tunables
    assert all(t.startswith("glibc.malloc.") and t.partition("=")[2].isdigit() for t in tunables)


@pytest.mark.parametrize("libc", ["glibc 2.31", "glibc 2.34", "musl 1.2.5", ""])
def test_others_keep_their_own_ways(libc: str) -> None:
    assert allocator_environment(libc) == {}
