"""A weight as the native kernels see it: what kind it is, and where its bytes are (`lp_matrix` in
node/native/kernels.h).

Kinds 0 to 2 are row-major tensors in a storage dtype, multiplied in float32. Kind 3 is bfloat16 in panels, for
bfloat16 dot products and AMX tiles: it takes the place of the tensor that it is made from. A new kind needs a number
here, a function that makes a `Matrix` of it, and its product in C (kernels.h says how).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from languagepipes_node.model import kernels

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
PANELS = 3
# Quantised, in panels (`model.packed`); a stack's data are the descriptions of its parts.
Q8, Q8_BY_16, Q4, STACK = 4, 5, 6, 7
PANEL = 32  # outputs of a panel; of kind 3 also the multiple to which depths are filled up


class NativeMatrix(ctypes.Structure):
    """lp_matrix."""

    _fields_ = [
        ("kind", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("depth", ctypes.c_int64),
        ("data", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
    ]


@dataclass(frozen=True)
class Matrix:
    """A weight of `width` outputs by `depth` inputs. data, scales: what the native kernels read; they stay as long as
    it."""

    kind: int
    width: int
    depth: int
    data: torch.Tensor
    scales: torch.Tensor | None = None
    parts: tuple[Matrix, ...] = ()  # of a stack, whose data are their descriptions

    @property
    def shape(self) -> tuple[int, int]:
        return self.width, self.depth

    @property
    def nbytes(self) -> int:
        own = self.data.nbytes + (self.scales.nbytes if self.scales is not None else 0)
        return sum(part.nbytes for part in self.parts) or own

    def native(self) -> NativeMatrix:
        """Valid as long as this object."""
        scales = self.scales.data_ptr() if self.scales is not None else None
        return NativeMatrix(self.kind, self.width, self.depth, self.data.data_ptr(), scales)

    def outputs(self, start: int, stop: int) -> Matrix:
        """A view of outputs `[start, stop)` of a quantised matrix: whole panels."""
        if self.scales is None or start % PANEL or stop % PANEL:
            raise ValueError(f"outputs [{start}, {stop}) of kind {self.kind} are no whole panels with scales")
        first, last = start // PANEL, stop // PANEL
        return Matrix(self.kind, stop - start, self.depth, self.data[first:last], self.scales[first:last])

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """indices: int64 [n]. The weights of these outputs, [n, depth], in the dtype at rest: an embedding's
        look-up."""
        if self.kind != PANELS:
            return self.data.index_select(0, indices)
        panels = self.data.view(-1, _filled(self.depth) // 2, PANEL, 2)
        return panels[indices // PANEL, :, indices % PANEL].reshape(len(indices), -1)[:, : self.depth]


def row_major(weight: torch.Tensor) -> Matrix:
    """weight: [width, depth], contiguous, on the CPU, float32, bfloat16 or float16. Shares its memory."""
    kind = KINDS.get(weight.dtype)
    if kind is None or weight.ndim != 2 or not (weight.is_contiguous() and weight.is_cpu):
        raise ValueError(f"no native kernel multiplies by {weight.dtype} {tuple(weight.shape)} on {weight.device}")
    return Matrix(kind, weight.shape[0], weight.shape[1], weight)


def panels_pay(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether weights of this dtype are to be kept as panels here: the CPU multiplies bfloat16 by bfloat16."""
    return (
        dtype == torch.bfloat16
        and device.type == "cpu"
        and kernels.available()
        and kernels.library()[1] >= kernels.BFLOAT16_PAIRS
    )


def panels(weight: torch.Tensor) -> Matrix:
    """weight: bfloat16 [width, depth], contiguous, on the CPU; not to be used any more, for where both sizes are
    multiples of 32 the panels take its place in memory. Other sizes are filled up, in memory of their own.
    """
    if weight.dtype != torch.bfloat16 or weight.ndim != 2 or not (weight.is_contiguous() and weight.is_cpu):
        raise ValueError(f"cannot make panels of {weight.dtype} {tuple(weight.shape)} on {weight.device}")
    native, _ = kernels.library()
    width, depth = weight.shape
    size = native.lp_panel_bytes(width, depth)
    data = weight if size == weight.nbytes else torch.empty(size // 2, dtype=torch.bfloat16)
    threads = torch.get_num_threads()
    scratch = torch.empty(threads * PANEL * depth, dtype=torch.bfloat16)
    native.lp_pack_panels(data.data_ptr(), weight.data_ptr(), width, depth, scratch.data_ptr(), threads)
    return Matrix(PANELS, width, depth, data)


def multiply(x: torch.Tensor, weight: Matrix) -> torch.Tensor:
    """x float32 [rows, depth] × weight [width, depth] → float32 [rows, width]. Sums in float32.

    Panels round x to bfloat16. A row's numbers do not depend on the number of rows. Raises RuntimeError if
    `available()` is False, ValueError for shapes, dtypes or layouts that it does not take.
    """
    native, level = kernels.library()
    rows, depth = x.shape
    if x.dtype is not torch.float32 or weight.depth != depth or not (x.is_contiguous() and x.is_cpu):
        raise ValueError(f"cannot multiply {x.dtype} {tuple(x.shape)} by a weight of {weight.width} × {weight.depth}")
    y = torch.empty(rows, weight.width)
    matrix = weight.native()
    scratch = torch.empty(native.lp_linear_scratch(ctypes.byref(matrix), rows, level), dtype=torch.uint8)
    refused = native.lp_linear(y.data_ptr(), x.data_ptr(), ctypes.byref(matrix), rows, scratch.data_ptr(), level)
    if refused:
        raise ValueError(f"{kernels.LEVELS[level]} has no product for weights of kind {weight.kind}")
    return y


def _filled(size: int) -> int:
    return -(-size // PANEL) * PANEL
