"""The header of a GGUF file, walked strictly before the gguf library sees any of its bytes.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. gguf's own reader
maps the file and trusts its counts (and needs 2 s for a small vocabulary); here each count, length and offset is held
against the file's size first, so a truncated or lying file gets a sentence and allocates nothing. Quantisation names,
block sizes and dequantising stay the library's. Knows no file: it is given a way to read ranges.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from languagepipes_node.weights.errors import BrokenFile, UnsupportedFile
from languagepipes_node.weights.headers import refuse_pickles

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 256 * 1024 * 1024
MAX_KEYS = 4096
MAX_TENSORS = 1 << 17
MAX_ARRAY_ITEMS = 1 << 22
MAX_STRING_BYTES = 16 * 1024 * 1024
MAX_NAME_BYTES = 4096
MAX_DIMENSIONS = 4
_READ_AHEAD_BYTES = 1024 * 1024

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: dict[int, tuple[str, int]] = {
    0: ("<B", 1),
    1: ("<b", 1),
    2: ("<H", 2),
    3: ("<h", 2),
    4: ("<I", 4),
    5: ("<i", 4),
    6: ("<f", 4),
    _BOOL: ("<?", 1),
    10: ("<Q", 8),
    11: ("<q", 8),
    12: ("<d", 8),
}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor. shape: row-major (the file's order reversed); its bytes are `[begin, begin + nbytes)` of the file."""

    name: str
    quantization: GGMLQuantizationType
    shape: tuple[int, ...]
    begin: int
    nbytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (the last dimension)."""
        return self.nbytes // max(1, math.prod(self.shape[:-1]))


@dataclass(frozen=True)
class GgufHeader:
    """metadata: scalars as Python values, arrays of strings as lists, other arrays as numpy arrays."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    file_bytes: int


def read_gguf_header(read: Callable[[int, int], bytes], *, file_bytes: int, file: str) -> GgufHeader:
    """Walk the header. `read(begin, end)` returns exactly those bytes. Raises BrokenFile or UnsupportedFile."""
    return _Walk(read, file_bytes, file).header()


class _Walk:
    """A position in the header, and the bytes read so far ahead of it."""

    def __init__(self, read: Callable[[int, int], bytes], file_bytes: int, file: str) -> None:
        self._read = read
        self._file_bytes = file_bytes
        self._file = file
        self._position = 0
        self._buffer = b""
        self._buffer_begin = 0

    def header(self) -> GgufHeader:
        tensor_count, key_count = self._opening()
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._string("a metadata key", MAX_NAME_BYTES)
            if key in metadata:
                raise self._broken(f"the metadata key {key[:200]!r} stands there twice")
            metadata[key] = self._value(self._integer("<I"), key)
        if metadata.get("split.count", 0) not in (0, 1):
            raise UnsupportedFile(
                f"{self._file}: one of {metadata['split.count']} parts; join them first (llama-gguf-split --merge)"
            )
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._broken(f"general.alignment is {alignment!r}, no power of two from 8 to 1048576")
        tensors = [self._tensor() for _ in range(tensor_count)]
        data_begin = -(-self._position // alignment) * alignment
        return GgufHeader(metadata, self._placed(tensors, data_begin, alignment), self._file_bytes)

    def _opening(self) -> tuple[int, int]:
        if self._file_bytes < 24:
            raise self._broken(f"{self._file_bytes} bytes are too few for a GGUF file; it was cut short")
        magic = self._take(4, "the magic")
        if magic != MAGIC:
            refuse_pickles(self._file, magic)
            raise self._broken(f"begins with {magic!r} instead of {MAGIC!r}; this is no GGUF file")
        version = self._integer("<I")
        if version in (2 << 24, 3 << 24):
            raise UnsupportedFile(f"{self._file}: a big-endian GGUF file; convert it on a little-endian machine")
        if version not in (2, 3):
            raise UnsupportedFile(f"{self._file}: GGUF version {version}; versions 2 and 3 are read")
        tensor_count, key_count = self._integer("<Q"), self._integer("<Q")
        if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
            raise self._broken(
                f"states {tensor_count} tensors and {key_count} metadata keys, more than the {MAX_TENSORS} and "
                f"{MAX_KEYS} allowed"
            )
        # A key takes at least 8 + 1 + 4 + 1 bytes and a tensor 8 + 1 + 4 + 8 + 4 + 8.
        if key_count * 14 + tensor_count * 33 > self._file_bytes:
            raise self._broken(
                f"states {tensor_count} tensors and {key_count} metadata keys, which {self._file_bytes} bytes cannot "
                "hold; it was cut short"
            )
        return tensor_count, key_count

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._string(f"the value of {key[:200]!r}", MAX_STRING_BYTES)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise self._broken(f"the metadata key {key[:200]!r} has the unknown type {kind}")
        code, size = _SCALARS[kind]
        (value,) = struct.unpack(code, self._take(size, f"the value of {key[:200]!r}"))
        return value

    def _array(self, key: str) -> list[str] | npt.NDArray[Any]:
        kind, count = self._integer("<I"), self._integer("<Q")
        item_bytes = 8 if kind == _STRING else _SCALARS[kind][1] if kind in _SCALARS else 0
        if not item_bytes:
            raise self._broken(f"the array {key[:200]!r} has items of the unknown type {kind}")
        if count > MAX_ARRAY_ITEMS or count * item_bytes > self._file_bytes - self._position:
            raise self._broken(
                f"the array {key[:200]!r} states {count} items of at least {item_bytes} bytes, but the file has "
                f"{self._file_bytes - self._position} bytes left; it was cut short"
            )
        if kind == _STRING:
            return [self._string(f"an item of {key[:200]!r}", MAX_STRING_BYTES) for _ in range(count)]
        data = self._take(count * item_bytes, f"the array {key[:200]!r}")
        return np.frombuffer(data, dtype=np.dtype(_SCALARS[kind][0]))

    def _tensor(self) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int, int]:
        name = self._string("a tensor's name", MAX_NAME_BYTES)
        dimensions = self._integer("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._broken(
                f"tensor {name[:200]!r} states {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are allowed"
            )
        extents = [self._integer("<Q") for _ in range(dimensions)]
        kind, offset = self._integer("<I"), self._integer("<Q")
        try:
            quantization = GGMLQuantizationType(kind)
            block, block_bytes = GGML_QUANT_SIZES[quantization]
        except (ValueError, KeyError) as error:
            raise UnsupportedFile(f"{self._file}: tensor {name[:200]!r} has the unknown type {kind}") from error
        if any(not 1 <= extent <= 1 << 40 for extent in extents) or extents[0] % block:
            raise self._broken(f"tensor {name[:200]!r} of {quantization.name} cannot have the shape {extents[::-1]}")
        nbytes = math.prod(extents) // block * block_bytes
        if nbytes > self._file_bytes or offset > self._file_bytes:
            raise self._broken(
                f"tensor {name[:200]!r} of {quantization.name} and shape {extents[::-1]} needs {nbytes} bytes from "
                f"offset {offset} on, but the file has {self._file_bytes}; it was cut short"
            )
        return name, quantization, tuple(reversed(extents)), offset, nbytes

    def _placed(
        self,
        tensors: list[tuple[str, GGMLQuantizationType, tuple[int, ...], int, int]],
        data_begin: int,
        alignment: int,
    ) -> dict[str, GgufTensor]:
        placed: dict[str, GgufTensor] = {}
        end, previous = data_begin, "the header"
        for name, quantization, shape, offset, nbytes in sorted(tensors, key=lambda item: item[3]):
            begin = data_begin + offset
            if name in placed:
                raise self._broken(f"tensor {name[:200]!r} stands there twice")
            if offset % alignment:
                raise self._broken(f"tensor {name[:200]!r} begins at offset {offset}, no multiple of {alignment}")
            if begin < end:
                raise self._broken(f"tensor {name[:200]!r} overlaps {previous[:200]!r}")
            if begin + nbytes > self._file_bytes:
                raise self._broken(
                    f"tensor {name[:200]!r} ends at byte {begin + nbytes}, but the file has {self._file_bytes}; "
                    "it was cut short, fetch it again"
                )
            placed[name] = GgufTensor(name, quantization, shape, begin, nbytes)
            end, previous = begin + nbytes, name
        return placed

    def _string(self, what: str, limit: int) -> str:
        length = self._integer("<Q")
        if length > limit:
            raise self._broken(f"{what} states a length of {length} bytes; at most {limit} are allowed")
        try:
            return self._take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._broken(f"{what} is not UTF-8") from error

    def _integer(self, code: str) -> int:
        (value,) = struct.unpack(code, self._take(struct.calcsize(code), "a number"))
        return int(value)

    def _take(self, count: int, what: str) -> bytes:
        end = self._position + count
        if end > self._file_bytes:
            raise self._broken(
                f"ends at byte {self._file_bytes} inside {what}, which goes to byte {end}; it was cut short, "
                "fetch it again"
            )
        if end > MAX_HEADER_BYTES:
            raise self._broken(f"the header is longer than the {MAX_HEADER_BYTES} bytes allowed")
        buffer_end = self._buffer_begin + len(self._buffer)
        if end > buffer_end:
            rest = self._buffer[self._position - self._buffer_begin :]
            read_end = min(self._file_bytes, max(end, buffer_end + _READ_AHEAD_BYTES))
            self._buffer = rest + self._read(buffer_end, read_end)
            self._buffer_begin = self._position
        begin = self._position - self._buffer_begin
        self._position = end
        return self._buffer[begin : begin + count]

    def _broken(self, problem: str) -> BrokenFile:
        return BrokenFile(f"{self._file}: {problem}")
