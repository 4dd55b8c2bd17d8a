"""A `Prefix` as the kernels read it."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chatgrpo.inference.kv_cache import Prefix


class CPrefix(ctypes.Structure):
    _fields_ = (("keys", ctypes.c_void_p), ("values", ctypes.c_void_p), ("length", ctypes.c_int64))


class DescribedPrefix:
    """Holds pointers to the prefix's memory as it is now: whoever keeps it keeps the prefix, too."""

    def __init__(self, prefix: Prefix) -> None:
        self._keys, self._values = (
            (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
            for tensors in (prefix.keys, prefix.values)
        )
        self._struct = CPrefix(ctypes.addressof(self._keys), ctypes.addressof(self._values), prefix.length)
        self.address = ctypes.addressof(self._struct)
