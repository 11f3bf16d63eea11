"""Quantise a model of safetensors files, once and atomically, to a directory that is served in their place.

Some rows of one tensor are in memory at a time. What is not quantised keeps its bytes; small files are copied. The
directory's name says what it was made from (`quantised_name`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from languagepipes_api.plan import Quantization

from languagepipes_node.weights.converted import (
    Tensors,
    TensorWriter,
    complete_directory,
    decode,
    tensor_bytes,
    write_text,
)
from languagepipes_node.weights.directory import read_file_range
from languagepipes_node.weights.index import INDEX_FILE, SINGLE_FILE, IndexEntry, WeightsIndex
from languagepipes_node.weights.quantised import Kind, kind_for, quantise

VERSION = 1
_CHUNK_VALUES = 4 * 1024 * 1024  # 16 MiB of float32 at a time
_FLOATS = ("float32", "bfloat16", "float16")


def quantised_name(keys: Iterable[str], quantization: Quantization) -> str:
    """keys: one for the content of each file of the model, in their order."""
    return f"{hashlib.sha256(repr(sorted(keys)).encode()).hexdigest()}-q{VERSION}-{quantization}"


def quantised_bytes(index: WeightsIndex, quantization: Quantization) -> int:
    """The size of the new file's data."""
    return sum(map(tensor_bytes, _written(index, quantization).values()))


def quantise_model(
    paths: Mapping[str, Path],
    index: WeightsIndex,
    output: Path,
    *,
    quantization: Quantization,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Path:
    """Write `output` unless it exists, and return it. paths: every file of the index. progress: called with bytes
    written since the last call. Raises WeightsError; then nothing of `output` is left.
    """
    if output.exists():
        return output
    with complete_directory(output, quantised_bytes(index, quantization)) as partial:
        for name, path in paths.items():
            if not name.endswith(".safetensors") and name != INDEX_FILE:
                write_text(partial / name, path.read_bytes())
        with TensorWriter(partial / SINGLE_FILE, _written(index, quantization), quantization, progress) as out:
            for name, entry in index.tensors.items():
                _write(paths[entry.file], name, entry, quantization, out)
    return output


def _write(path: Path, name: str, entry: IndexEntry, quantization: Quantization, out: TensorWriter) -> None:
    kind = _kind(name, entry, quantization)
    rows = entry.shape[0] if entry.shape else 1
    row_bytes = entry.nbytes // max(1, rows)
    step = max(1, _CHUNK_VALUES * rows // max(1, math.prod(entry.shape)))
    for first in range(0, rows, step):
        count = min(step, rows - first)
        begin = entry.begin + first * row_bytes
        data = read_file_range(path, begin, begin + count * row_bytes)
        if kind is None:
            out.append(name, data)
            continue
        values = decode(data, entry.dtype).reshape(count, -1)
        for part, array in quantise(values, kind, name).arrays(name).items():
            out.append(part, array)


def _written(index: WeightsIndex, quantization: Quantization) -> Tensors:
    written: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, entry in index.tensors.items():
        kind = _kind(name, entry, quantization)
        written |= {name: (entry.dtype, entry.shape)} if kind is None else kind.tensors(name, entry.shape)
    return written


def _kind(name: str, entry: IndexEntry, quantization: Quantization) -> Kind | None:
    return kind_for(name, entry.shape, quantization) if entry.dtype in _FLOATS else None
