"""The header of a safetensors file, read strictly: nothing in it is believed before it is checked.

Format: https://huggingface.co/docs/safetensors/index#format. Eight bytes (little-endian length of the header), a JSON
object, then one buffer. Each entry names a dtype, a shape and offsets into that buffer. Files with gaps, overlaps,
trailing bytes, duplicate keys or sizes that contradict shape × dtype are refused, and so is everything that could be a
pickle. This module opens no file and knows no directory: it is given bytes and sizes, since stages read ranges over the
wire and the safetensors library reads whole files (docs/decisions/0005-http-clients.md).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from languagepipes_node.weights.errors import BrokenFile, UnsupportedFile

LENGTH_BYTES = 8
# The library allows 100 MB; the largest real headers (36,000 tensors in one file) take 5 MB.
MAX_HEADER_BYTES = 32 * 1024 * 1024
MAX_DIMENSIONS = 8
MAX_EXTENT = 1 << 48

DTYPE_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0",
}
DTYPE_CODES = {name: code for code, name in DTYPE_NAMES.items()}
ITEM_BYTES = {
    **dict.fromkeys(("float64", "int64", "uint64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("int8", "uint8", "bool", "float8_e4m3", "float8_e5m2", "float8_e8m0"), 1),
}

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PICKLE_REMEDY = "publish the weights as .safetensors (safetensors' convert script does it) and name that repository"


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor's raw bytes lie in its file: half-open `[begin, end)`, absolute. dtype as in `TensorInfo`."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def refuse_pickles(file: str, first_bytes: bytes = b"") -> None:
    """Raise UnsupportedFile if name or content is that of a pickle (executable on load). `first_bytes`: 8 will do."""
    if PurePosixPath(file).suffix in _PICKLE_SUFFIXES:
        raise UnsupportedFile(
            f"{file}: PyTorch pickles can run code when they are loaded and are never read; {_PICKLE_REMEDY}"
        )
    if first_bytes[:4] == b"PK\x03\x04" or (first_bytes[:1] == b"\x80" and first_bytes[1:2] in b"\x02\x03\x04\x05"):
        raise UnsupportedFile(f"{file}: the content is a PyTorch pickle, whatever the name says; {_PICKLE_REMEDY}")


def header_end(first_bytes: bytes, *, file_bytes: int, file: str) -> int:
    """Where the header ends (absolute), from the file's first 8 bytes. Raises BrokenFile or UnsupportedFile."""
    if file_bytes < LENGTH_BYTES + 2 or len(first_bytes) < LENGTH_BYTES:
        raise BrokenFile(
            f"{file}: {file_bytes} bytes are too few for a safetensors file; it was cut short, fetch it again"
        )
    (length,) = struct.unpack("<Q", first_bytes[:LENGTH_BYTES])
    if LENGTH_BYTES + length > min(file_bytes, MAX_HEADER_BYTES):
        # Only now: the bytes of a right length may look like the beginning of something else.
        refuse_pickles(file, first_bytes)
        if first_bytes[:4] == b"GGUF":
            raise UnsupportedFile(f"{file}: this is a GGUF file; name it with the suffix .gguf")
    if length > MAX_HEADER_BYTES:
        raise BrokenFile(
            f"{file}: states a header of {length} bytes, more than the {MAX_HEADER_BYTES} allowed; "
            "this is no safetensors file"
        )
    if LENGTH_BYTES + length > file_bytes:
        raise BrokenFile(
            f"{file}: states a header of {length} bytes but the file has {file_bytes}; it was cut short, fetch it again"
        )
    return LENGTH_BYTES + int(length)


def parse_header(header: bytes, *, file_bytes: int, file: str) -> dict[str, TensorEntry]:
    """The tensors of one file. `header`: the JSON alone (without the length); `file_bytes`: the whole file's size.

    Raises BrokenFile, naming the tensor and the numbers, unless the entries tile the buffer exactly.
    """
    data_begin = LENGTH_BYTES + len(header)
    data_bytes = file_bytes - data_begin
    if data_bytes < 0:
        raise BrokenFile(f"{file}: {file_bytes} bytes do not hold a header of {len(header)}; fetch it again")
    entries = {
        name: _entry(fields, name=name, file=file, data_begin=data_begin, data_bytes=data_bytes)
        for name, fields in _load_object(header, file).items()
        if name != "__metadata__"
    }
    _check_tiling(entries, file=file, data_begin=data_begin, file_bytes=file_bytes)
    return entries


def build_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON of a file that holds `tensors` (name → dtype, shape) one after another, data 64-byte aligned."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {
            "dtype": DTYPE_CODES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text


def _load_object(header: bytes, file: str) -> dict[str, Any]:
    if not header.startswith(b"{"):
        raise BrokenFile(f"{file}: the header does not begin with '{{'; this is no safetensors file")
    try:
        loaded = json.loads(header, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        # The text of the error may quote the header's bytes; the kind and place are enough.
        detail = str(error) if isinstance(error, (_DuplicateKey, json.JSONDecodeError)) else type(error).__name__
        raise BrokenFile(f"{file}: the header is not a JSON object: {detail}") from error
    if not isinstance(loaded, dict):
        raise BrokenFile(f"{file}: the header is not a JSON object")
    metadata = loaded.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BrokenFile(f"{file}: __metadata__ is not a map of strings")
    return loaded


class _DuplicateKey(ValueError):
    pass


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKey(f"the key {key[:200]!r} stands there twice")
            seen.add(key)
    return result


def _entry(fields: Any, *, name: str, file: str, data_begin: int, data_bytes: int) -> TensorEntry:
    where = f"{file}: tensor {name[:200]!r}"
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise BrokenFile(f"{where} does not have exactly dtype, shape and data_offsets")
    dtype = DTYPE_NAMES.get(fields["dtype"]) if isinstance(fields["dtype"], str) else None
    if dtype is None:
        raise UnsupportedFile(
            f"{where} has the dtype {str(fields['dtype'])[:40]!r}; known are {', '.join(sorted(DTYPE_NAMES))}"
        )
    shape = _integers(fields["shape"])
    if shape is None or len(shape) > MAX_DIMENSIONS or any(extent > MAX_EXTENT for extent in shape):
        raise BrokenFile(f"{where} has no shape of at most {MAX_DIMENSIONS} whole numbers")
    offsets = _integers(fields["data_offsets"])
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise BrokenFile(f"{where} has no ascending pair of data_offsets")
    begin, end = offsets
    if end > data_bytes:
        raise BrokenFile(
            f"{where} ends at byte {end} of a buffer of {data_bytes}; the file was cut short, fetch it again"
        )
    needed = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != needed:
        raise BrokenFile(f"{where} of shape {list(shape)} and {dtype} needs {needed} bytes but states {end - begin}")
    return TensorEntry(dtype, shape, data_begin + begin, data_begin + end)


def _integers(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        return None
    return tuple(value)


def _check_tiling(entries: Mapping[str, TensorEntry], *, file: str, data_begin: int, file_bytes: int) -> None:
    position, previous = data_begin, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin < position:
            raise BrokenFile(f"{file}: tensor {name[:200]!r} overlaps {previous[:200]!r}")
        if entry.begin > position:
            raise BrokenFile(f"{file}: {entry.begin - position} bytes before tensor {name[:200]!r} belong to no tensor")
        position, previous = entry.end, name
    if position != file_bytes:
        raise BrokenFile(f"{file}: the last {file_bytes - position} bytes belong to no tensor")


def total_bytes(entries: Iterable[TensorEntry]) -> int:
    return sum(entry.end - entry.begin for entry in entries)
