"""Which of GGUF's block types are kept as they are, and how their bytes become the two kinds of `weights.quantised`.

    Q8_0, Q5_0        Q8, groups of 32, the block's own scale
    MXFP4             Q8, groups of 32: twice its values are whole numbers, its scales powers of two
    Q6_K              Q8, groups of 16, scale = super-scale × sub-scale
    Q4_0, Q4_1        Q4, the block's own scale; Q4_0's minimum is -8 × scale
    Q4_K              Q4, scale and minimum = super-scale × sub-scale

The products of Q6_K and Q4_K are rounded to float16 (at most one part in 2048 of a scale); all else is exact. Layouts
are those of ggml-common.h; a test holds each against the gguf library's own dequantisation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from languagepipes_node.weights.quantised import Q4, Q8, Q8_OF_16, Blocks, Kind, is_matrix, pack, to_float16

Bytes = npt.NDArray[np.uint8]

_MXFP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.int8)


def kept_kind(kind: GGMLQuantizationType, name: str, shape: tuple[int, ...]) -> Kind | None:
    """The kind that a GGUF tensor becomes under `asStored`; None: it is widened to spec.model.dtype."""
    known = _KINDS.get(kind)
    return known[0] if known is not None and is_matrix(name, shape) else None


def blocks_of(data: Bytes, kind: GGMLQuantizationType, name: str) -> Blocks:
    """data: uint8 [rows, bytes of a row], of a type for which `kept_kind` has a kind. Raises UnsupportedFile."""
    block_bytes = GGML_QUANT_SIZES[kind][1]
    return _KINDS[kind][1](data.reshape(data.shape[0], -1, block_bytes), name)


def _half(data: Bytes) -> npt.NDArray[np.float16]:
    """[rows, blocks, 2 bytes] → [rows, blocks]."""
    return np.ascontiguousarray(data).view("<f2")[:, :, 0].astype(np.float16)


def _rows(values: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    return np.ascontiguousarray(values.reshape(values.shape[0], -1))


def _nibbles(packed: Bytes) -> Bytes:
    """The low halves of a block, then the high ones."""
    return np.concatenate((packed & 15, packed >> 4), axis=2)


def _q8_0(data: Bytes, name: str) -> Blocks:
    return Blocks(_rows(data[:, :, 2:].view(np.int8)), _finite(_half(data[:, :, :2]), name))


def _q5_0(data: Bytes, name: str) -> Blocks:
    bits = np.ascontiguousarray(data[:, :, 2:6]).view("<u4")  # [rows, blocks, 1]: the fifth bit of each value
    high = ((bits >> np.arange(32, dtype=np.uint32)) & 1).astype(np.uint8)
    values = (_nibbles(data[:, :, 6:]) | (high << 4)).astype(np.int8) - np.int8(16)
    return Blocks(_rows(values), _finite(_half(data[:, :, :2]), name))


def _mxfp4(data: Bytes, name: str) -> Blocks:
    scales = np.ldexp(np.float32(1), data[:, :, 0].astype(np.int32) - 128)  # half of 2^(e - 127)
    return Blocks(_rows(_MXFP4_VALUES[_nibbles(data[:, :, 1:])]), to_float16(scales.astype(np.float32), name))


def _q6_k(data: Bytes, name: str) -> Blocks:
    rows, blocks, _ = data.shape
    low = data[:, :, :128].reshape(rows, blocks, 2, 1, 64) >> np.array([0, 4], dtype=np.uint8).reshape(2, 1)
    high = data[:, :, 128:192].reshape(rows, blocks, 2, 1, 32) >> np.array([0, 2, 4, 6], dtype=np.uint8).reshape(4, 1)
    whole = (low & 15).reshape(rows, blocks, 8, 32) | ((high & 3).reshape(rows, blocks, 8, 32) << 4)
    scales = data[:, :, 192:208].view(np.int8).astype(np.float32)
    products = scales * _half(data[:, :, 208:210]).astype(np.float32)[:, :, None]
    return Blocks(_rows(whole.astype(np.int8) - np.int8(32)), to_float16(products.reshape(rows, -1), name))


def _q4_0(data: Bytes, name: str) -> Blocks:
    scales = _finite(_half(data[:, :, :2]), name)
    return Blocks(_packed(data[:, :, 2:]), scales, to_float16(scales.astype(np.float32) * -8, name))


def _q4_1(data: Bytes, name: str) -> Blocks:
    scales, minimums = _half(data[:, :, :2]), _half(data[:, :, 2:4])
    return Blocks(_packed(data[:, :, 4:]), _finite(scales, name), _finite(minimums, name))


def _q4_k(data: Bytes, name: str) -> Blocks:
    rows, blocks, _ = data.shape
    scale, minimum = (_half(data[:, :, at : at + 2]).astype(np.float32)[:, :, None] for at in (0, 2))
    first, second, third = (data[:, :, at : at + 4] for at in (4, 8, 12))
    # Six bits each: four sub-blocks whole in `first` and `second`, four in halves of `third` and their upper two bits.
    scales = np.concatenate((first & 63, (third & 15) | ((first >> 2) & 48)), axis=2)
    minimums = np.concatenate((second & 63, (third >> 4) | ((second >> 2) & 48)), axis=2)
    packed = data[:, :, 16:].reshape(rows, blocks, 4, 1, 32) >> np.array([0, 4], dtype=np.uint8).reshape(2, 1)
    values = pack((packed & 15).astype(np.uint8).reshape(rows, blocks * 8, 32))
    return Blocks(
        values,
        to_float16((scale * scales).reshape(rows, -1), name),
        to_float16((-minimum * minimums).reshape(rows, -1), name),
    )


def _packed(data: Bytes) -> Bytes:
    return np.ascontiguousarray(data.reshape(data.shape[0], -1))


def _finite(scales: npt.NDArray[np.float16], name: str) -> npt.NDArray[np.float16]:
    return to_float16(scales.astype(np.float32), name)


_KINDS: dict[GGMLQuantizationType, tuple[Kind, Callable[[Bytes, str], Blocks]]] = {
    GGMLQuantizationType.Q8_0: (Q8, _q8_0),
    GGMLQuantizationType.Q5_0: (Q8, _q5_0),
    GGMLQuantizationType.MXFP4: (Q8, _mxfp4),
    GGMLQuantizationType.Q6_K: (Q8_OF_16, _q6_k),
    GGMLQuantizationType.Q4_0: (Q4, _q4_0),
    GGMLQuantizationType.Q4_1: (Q4, _q4_1),
    GGMLQuantizationType.Q4_K: (Q4, _q4_k),
}
KEPT_TYPES = tuple(kind.name for kind in _KINDS)
