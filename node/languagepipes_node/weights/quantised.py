"""Quantised matrices at rest: two kinds, how each lies in a safetensors file, and how it is made from floats.

A matrix [rows, depth] is cut along its depth into groups of 32 or 16 values. A value is

    Q8   value × scale                 value: int8
    Q4   value × scale + minimum       value: 0 to 15, two in a byte

A group of 32 Q4 values takes 16 bytes: the low halves are its first 16 values, the high halves its last 16 (as in
GGUF's Q4_1). Scales and minimums are float16. In a file the values keep the matrix's name; scales and minimums stand
beside them under the name with a suffix. Knows no torch and no GGUF.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from languagepipes_api.plan import Quantization

from languagepipes_node.weights.errors import UnsupportedFile

SCALES, MINIMUMS = ".scales", ".minimums"
GROUP = 32
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_LAYER_MATRIX = re.compile(r"model\.layers\.\d+\..+_proj\.weight")
# Of each group's range, what the scales that are tried for Q4 cover; the one with the least squared error is kept.
_Q4_RANGES = (1.0, 0.94, 0.88, 0.82)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Kind:
    """One of the two kinds, with its number of values a group."""

    bits: int
    group: int

    @property
    def has_minimums(self) -> bool:
        return self.bits == 4

    def tensors(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """What a file holds of the matrix `name` [rows, depth]: (dtype, shape) by name, in order."""
        rows, depth = shape
        groups = (rows, depth // self.group)
        values = ("int8", (rows, depth)) if self.bits == 8 else ("uint8", (rows, depth // 2))
        held: dict[str, tuple[str, tuple[int, ...]]] = {name: values, name + SCALES: ("float16", groups)}
        if self.has_minimums:
            held[name + MINIMUMS] = ("float16", groups)
        return held

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of values, scales and minimums."""
        rows, depth = shape
        return rows * (depth * self.bits // 8 + depth // self.group * (4 if self.has_minimums else 2))


Q8, Q8_OF_16, Q4 = Kind(8, GROUP), Kind(8, 16), Kind(4, GROUP)


@dataclass(frozen=True)
class Blocks:
    """Some rows of a quantised matrix. values: int8 [rows, depth] or uint8 [rows, depth / 2]; scales, minimums:
    float16 [rows, groups].
    """

    values: npt.NDArray[np.int8] | npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float16]
    minimums: npt.NDArray[np.float16] | None = None

    def arrays(self, name: str) -> dict[str, npt.NDArray[np.generic]]:
        """By the names of `Kind.tensors`."""
        held: dict[str, npt.NDArray[np.generic]] = {name: self.values, name + SCALES: self.scales}
        if self.minimums is not None:
            held[name + MINIMUMS] = self.minimums
        return held


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is one that is quantised at all: of layers, embedding or head; no norm, bias or router."""
    named = name in (_EMBEDDING, _HEAD) or _LAYER_MATRIX.fullmatch(name) is not None
    return named and len(shape) == 2


def kind_for(name: str, shape: tuple[int, ...], mode: Quantization) -> Kind | None:
    """What int8 or int4 makes of a tensor; None: it stays as it is.

    int4 keeps embedding and head in 8 bits, as llama.cpp's files do: they are the matrices whose rounding shows most
    (docs/decisions/0011-quantised-weights.md).
    """
    if mode not in ("int8", "int4") or not is_matrix(name, shape) or shape[1] % GROUP:
        return None
    return Q8 if mode == "int8" or name in (_EMBEDDING, _HEAD) else Q4


def quantise(values: Floats, kind: Kind, name: str) -> Blocks:
    """values: float32 [rows, depth]. Rounds to nearest. Raises UnsupportedFile naming the tensor for what float16
    scales cannot hold.
    """
    rows, depth = values.shape
    groups = values.reshape(rows, depth // kind.group, kind.group)
    if not np.isfinite(values).all():
        raise UnsupportedFile(f"tensor {name}: holds values that are not finite; the file is damaged")
    return _to_q8(groups, name) if kind.bits == 8 else _to_q4(groups, name)


def dequantised(blocks: Blocks, kind: Kind) -> Floats:
    """float32 [rows, depth]: what the values stand for."""
    scales = blocks.scales.astype(np.float32)[:, :, None]
    if kind.bits == 8:
        whole = blocks.values.reshape(*blocks.scales.shape, kind.group) * scales
    else:
        packed = blocks.values.reshape(*blocks.scales.shape, kind.group // 2)
        whole = np.concatenate((packed & 15, packed >> 4), axis=2) * scales
        if blocks.minimums is not None:
            whole += blocks.minimums.astype(np.float32)[:, :, None]
    return np.asarray(whole.reshape(len(blocks.scales), -1), dtype=np.float32)


def pack(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """[rows, groups, 32] of 0 to 15 → [rows, groups × 16]."""
    rows, _, group = values.shape
    low, high = values[:, :, : group // 2], values[:, :, group // 2 :]
    return (low | np.left_shift(high, 4, dtype=np.uint8)).reshape(rows, -1)


def to_float16(values: Floats, name: str) -> npt.NDArray[np.float16]:
    """Rounded to nearest even. Raises UnsupportedFile beyond its range."""
    with np.errstate(over="ignore", invalid="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise UnsupportedFile(
            f"tensor {name}: a group's scale is not finite or beyond float16's 65504; "
            "set spec.model.quantization to none"
        )
    return half


def _to_q8(groups: Floats, name: str) -> Blocks:
    scales = to_float16(np.abs(groups).max(axis=2) / 127, name)
    values = np.rint(groups * _inverse(scales)[:, :, None])
    # The scale as rounded may be a little smaller than asked for.
    return Blocks(np.clip(values, -127, 127).astype(np.int8).reshape(len(groups), -1), scales)


def _to_q4(groups: Floats, name: str) -> Blocks:
    low, high = groups.min(axis=2), groups.max(axis=2)
    middle, half = (low + high) / 2, (high - low) / 2
    best_error = np.full(low.shape, np.inf, dtype=np.float32)
    best_scales, best_minimums = np.zeros_like(low, np.float16), np.zeros_like(low, np.float16)
    best = np.zeros(groups.shape, dtype=np.uint8)
    for part in _Q4_RANGES:
        scales = to_float16(half * np.float32(2 * part / 15), name)
        minimums = to_float16(middle - half * np.float32(part), name)
        wide, floor = scales.astype(np.float32)[:, :, None], minimums.astype(np.float32)[:, :, None]
        levels = np.clip(np.rint((groups - floor) * _inverse(scales)[:, :, None]), 0, 15)
        error = np.square(levels * wide + floor - groups).sum(axis=2)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scales, best_minimums = np.where(better, scales, best_scales), np.where(better, minimums, best_minimums)
        best = np.where(better[:, :, None], levels.astype(np.uint8), best)
    return Blocks(pack(best), best_scales, best_minimums)


def _inverse(scales: npt.NDArray[np.float16]) -> Floats:
    """1 / scale; 0 where the scale is 0 or its inverse no float32."""
    wide = scales.astype(np.float32)
    return np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)


def stored_kind(name: str, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[Kind, tuple[int, ...]] | None:
    """The kind and the matrix's shape of a tensor in a file, from (dtype, shape) by name; None if it is not quantised.

    Raises UnsupportedFile where values, scales and minimums do not belong together.
    """
    dtype, shape = tensors[name]
    if dtype not in ("int8", "uint8") or len(shape) != 2:
        return None
    scales = tensors.get(name + SCALES)
    if scales is None:
        return None
    if len(scales[1]) != 2 or not scales[1][1]:
        raise UnsupportedFile(f"tensor {name}: its scales have the shape {list(scales[1])}, not [rows, groups]")
    whole = (shape[0], shape[1] * (2 if dtype == "uint8" else 1))
    kind = Kind(8 if dtype == "int8" else 4, whole[1] // scales[1][1])
    expected = kind.tensors(name, whole) if kind in (Q8, Q8_OF_16, Q4) else {}
    if not expected or any(tensors.get(each) != held for each, held in expected.items()):
        raise UnsupportedFile(f"tensor {name}: its scales and minimums do not fit its {dtype} values {list(shape)}")
    return kind, whole
