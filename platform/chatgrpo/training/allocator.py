"""Gives freed memory back to the system between the phases of a step."""

from __future__ import annotations

import ctypes
import ctypes.util
import sys

import torch


def release_freed_memory() -> None:
    """On Linux, glibc keeps freed blocks below 32 MB in its heap, where blocks of another phase hold them apart: a run
    of full fine-tuning grew by 60 MB a step without this. On a GPU torch's cache is emptied; elsewhere nothing is done.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if _libc is not None:
        _libc.malloc_trim(0)


def _find_libc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    found = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6")
    return found if hasattr(found, "malloc_trim") else None  # musl has none


_libc = _find_libc()
