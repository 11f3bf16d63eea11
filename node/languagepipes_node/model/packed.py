"""Quantised weights as the native kernels take them (node/native/quantised.c): panels of 32 outputs, in place.

Packing moves bytes and rounds nothing. Where the outputs are a multiple of 32 the panels stand in the memory of the
values; other sizes are filled up, in memory of their own.
"""

from __future__ import annotations

import torch

from languagepipes_node.model import kernels
from languagepipes_node.model.architecture import Architecture
from languagepipes_node.model.matrix import PANEL, Q4, Q8, Q8_BY_16, STACK, Matrix, NativeMatrix
from languagepipes_node.model.quantised import QuantisedWeight, StackedWeight, Weight, rows_of

_KINDS = {(8, 32): Q8, (8, 16): Q8_BY_16, (4, 32): Q4}
_PANELS_AT_ONCE = 64


def packs(device: torch.device) -> bool:
    """Whether the native kernels multiply quantised weights here."""
    return device.type == "cpu" and kernels.available()


def packable(weight: Weight) -> bool:
    """Whether whole native steps take it: a tensor, one quantised matrix, or a stack of such whose heights fit."""
    if isinstance(weight, StackedWeight):
        return all(isinstance(segment, QuantisedWeight) for segment in weight.segments) and not any(
            segment.shape[0] % PANEL for segment in weight.segments[:-1]
        )
    return True


def halves(gate_up: Weight) -> tuple[Weight, Weight]:
    """The gate's rows and up's."""
    height = gate_up.shape[0] // 2
    return rows_of(gate_up, 0, height), rows_of(gate_up, height, 2 * height)


def pack_all(weights: dict[str, Weight], architecture: Architecture) -> dict[str, Weight]:
    """A layer's quantised matrices packed, where they can be; the others stay. An expert has whole panels or none is
    packed.
    """
    experts = architecture.experts.count if architecture.experts is not None else 1

    def packed(name: str, weight: Weight) -> Weight:
        height = weight.shape[0] // experts
        whole = not name.startswith("experts_") or (height % PANEL == 0 and isinstance(weight, QuantisedWeight))
        return weight if isinstance(weight, torch.Tensor) or not (packable(weight) and whole) else pack(weight)

    return {name: packed(name, weight) for name, weight in weights.items()}


def pack(weight: Weight) -> Matrix:
    """weight: quantised, on the CPU, and `packable`; not to be used any more."""
    if isinstance(weight, StackedWeight):
        parts = tuple(pack(segment) for segment in weight.segments)
        described = (NativeMatrix * len(parts))(*(part.native() for part in parts))
        data = torch.frombuffer(bytearray(described), dtype=torch.uint8)
        return Matrix(STACK, *weight.shape, data, parts=parts)
    if not isinstance(weight, QuantisedWeight):
        raise TypeError(f"a {type(weight).__name__} is not packed")
    rows, depth = weight.shape
    return Matrix(_KINDS[weight.bits, weight.group], rows, depth, _values(weight), _scales(weight))


def look_up(matrix: Matrix, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """ids: int64 [n]. [n, depth] in dtype: the rows of a head that is the embedding too."""
    if matrix.scales is None:
        return matrix.rows(ids)
    panel, lane = ids // PANEL, ids % PANEL
    values = matrix.data[panel, :, lane].reshape(len(ids), -1)
    if matrix.kind == Q4:
        scales, minimums = (matrix.scales[panel, :, which, lane] for which in (0, 1))
        return QuantisedWeight(values, scales, minimums).widened(dtype)
    return QuantisedWeight((values ^ 128).view(torch.int8), matrix.scales[panel, :, lane]).widened(dtype)


def _values(weight: QuantisedWeight) -> torch.Tensor:
    """uint8 [panels, quads or pairs of them, 32, 4]."""
    source = weight.values.view(torch.uint8)
    rows, row_bytes = source.shape
    panels = -(-rows // PANEL)
    whole = rows == panels * PANEL
    target = source if whole else torch.empty((panels * PANEL, row_bytes), dtype=torch.uint8)
    for first in range(0, panels, _PANELS_AT_ONCE):
        own = source[first * PANEL : (first + _PANELS_AT_ONCE) * PANEL]
        own = own ^ 128 if weight.bits == 8 else own
        own = _filled(own).view(-1, PANEL, row_bytes // 4, 4).transpose(1, 2).reshape(-1, row_bytes)
        target[first * PANEL : (first + _PANELS_AT_ONCE) * PANEL] = own
    return target.view(panels, row_bytes // 4, PANEL, 4)


def _scales(weight: QuantisedWeight) -> torch.Tensor:
    """float16 [panels, groups, 32], with minimums [panels, groups, 2, 32]."""
    groups = weight.scales.shape[1]
    scales = _filled(weight.scales).view(-1, PANEL, groups).transpose(1, 2)
    if weight.minimums is None:
        return scales.contiguous()
    return torch.stack((scales, _filled(weight.minimums).view(-1, PANEL, groups).transpose(1, 2)), dim=2)


def _filled(rows: torch.Tensor) -> torch.Tensor:
    """With zero rows up to a multiple of 32."""
    missing = -rows.shape[0] % PANEL
    return torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows
