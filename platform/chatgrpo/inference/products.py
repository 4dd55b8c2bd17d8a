"""Matrix products of float32 on CPU by our kernels, oneDNN or torch's default.

torch sends float32 products on x86 to MKL, which is the faster one on Intel's processors and does not use AVX-512 on
every other that has it; oneDNN, which torch carries as well, does (`make bench NAME=grpo` measures both on large
squares, and what is used here beside MKL as `gemm_ours_vs_mkl`). The operators are the ones that torch.compile emits
for linear layers. A weight that serves many products is packed once, for our own kernels where they could be built. The
choice depends on nothing measured, so that a run that is resumed computes the same bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chatgrpo.inference.huge_pages import HugePages
from chatgrpo.inference.native import kernels
from chatgrpo.inference.native.kernels import Panels

# oneDNN lays a packed weight out for this many rows of input; it serves any number.
_PACKED_ROWS = 32

_ops: Any = torch.ops.mkldnn


def _prefers_onednn() -> bool:
    """Where the processor does not tell its name, it is taken for no Intel's."""
    if not (torch._C._has_mkldnn and hasattr(_ops, "_linear_pointwise")):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    is_intel = cpuinfo.is_file() and "GenuineIntel" in cpuinfo.read_text(encoding="utf-8")
    return not (is_intel and torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]


_PREFERS_ONEDNN = _prefers_onednn()


def linear(
    x_TI: Tensor, weight_OI: Tensor | Panels, bias_O: Tensor | None = None, out_TO: Tensor | None = None
) -> Tensor:
    """x W^T + b. `weight_OI` may be packed; the result is then in `out_TO`, where given."""
    if isinstance(weight_OI, Panels):
        return kernels.linear(x_TI, weight_OI, bias_O, out_TO=out_TO)
    if _by_onednn(x_TI):
        product: Tensor = _ops._linear_pointwise(x_TI, weight_OI, bias_O, "none", [], "")
        return product
    return nn.functional.linear(x_TI, weight_OI, bias_O)


def linear_add(
    x_TI: Tensor,
    weight_OI: Tensor | Panels,
    bias_O: Tensor | None,
    other_TO: Tensor,
    out_TO: Tensor | None = None,
) -> Tensor:
    """x W^T + b + other, in one pass over the result; `out_TO` as for `linear`."""
    if isinstance(weight_OI, Panels):
        return kernels.linear(x_TI, weight_OI, bias_O, other_TO, out_TO)
    if _by_onednn(x_TI):
        product: Tensor = _ops._linear_pointwise.binary(x_TI, other_TO, weight_OI, bias_O, "add")
        return product
    return nn.functional.linear(x_TI, weight_OI, bias_O) + other_TO


def times(y_TO: Tensor, weight_OI: Tensor) -> Tensor:
    """y W: the gradient by the input of `linear`."""
    return linear(y_TO, weight_OI.T)


def outer(y_TO: Tensor, x_TI: Tensor) -> Tensor:
    """y^T x, OI: the gradient by the weight of `linear`."""
    return linear(y_TO.T, x_TI.T)


def pack(weight_OI: Tensor, pages: HugePages | None = None) -> Tensor | Panels:
    """A copy for `linear` alone that serves few rows of input faster, in `pages` for our kernels; the weight itself
    where nothing is gained."""
    if kernels.suit(weight_OI):
        return kernels.pack(weight_OI, pages)
    if _by_onednn(weight_OI):
        packed: Tensor = _ops._reorder_linear_weight(weight_OI, _PACKED_ROWS)
        return packed
    return weight_OI


def _by_onednn(x: Tensor) -> bool:
    return _PREFERS_ONEDNN and x.dtype == torch.float32 and x.device.type == "cpu"
