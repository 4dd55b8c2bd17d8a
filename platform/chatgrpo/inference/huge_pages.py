"""Memory in large pages, for what is streamed through at every decode step.

With pages of 4 KB a decode step of SmolLM2-135M goes through 130,000 of them, and memory that is new costs a fault for
each. Linux gives pages of 2 MB to whom asks (`transparent_hugepage` is `madvise` or `always`); elsewhere the memory is
as any other."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

_HUGE = 2 * 2**20
# Blocks of this size: what is left of the last one is never touched.
_BLOCK = 64 * 2**20
_ALIGNED = 64


class HugePages:
    """Hands out float32 tensors on the CPU; a block lives as long as any tensor in it."""

    _block: Tensor
    _next: int

    def __init__(self) -> None:
        self.clear()

    def empty(self, *shape: int) -> Tensor:
        size = math.prod(shape) * 4
        if self._next + size > self._block.numel():
            self._block = huge(torch.empty(_whole(max(size, _BLOCK)) + _HUGE, dtype=torch.uint8))
            self._next = -self._block.data_ptr() % _HUGE
        part = self._block[self._next : self._next + size]
        self._next += -(-size // _ALIGNED) * _ALIGNED
        return part.view(torch.float32).view(shape)

    def clear(self) -> None:
        """The next tensor begins a new block."""
        self._block = torch.empty(0, dtype=torch.uint8)
        self._next = 0


def _whole(size: int) -> int:
    return -(-size // _HUGE) * _HUGE


def huge(tensor: Tensor) -> Tensor:
    """The tensor, whose memory comes in large pages where it was not touched before."""
    if _libc is not None and tensor.device.type == "cpu":
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // mmap.PAGESIZE * mmap.PAGESIZE
        if stop - start >= _HUGE:
            # It may be refused: large pages are a matter of speed only.
            _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_HUGEPAGE)
    return tensor


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the CPU a page of them is written by whoever first touches it, not twice, and the memory goes back to the
    system with the tensor, whatever the allocator keeps."""
    size = math.prod(shape) * dtype.itemsize
    if _libc is None or size < _HUGE or device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, size)
    with contextlib.suppress(OSError):  # as in `huge`
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


_libc = ctypes.CDLL(None) if sys.platform.startswith("linux") and hasattr(mmap, "MADV_HUGEPAGE") else None
