"""How the KV cache grows, apart from torch, so that what plans memory and what holds it agree."""

from __future__ import annotations

# Row counts and lengths grow in these steps: a growth copies everything, an unused token costs memory only.
_ROW_STEP = 8
_LENGTH_STEP = 64


def rounded(num_rows: int, max_length: int) -> tuple[int, int]:
    """Rows and tokens a row that are held for so many."""
    return _up(num_rows, _ROW_STEP), _up(max_length, _LENGTH_STEP)


def _up(count: int, step: int) -> int:
    return -(-count // step) * step
