"""Writing a converted model: a directory that appears complete or not at all, and a safetensors file as it comes.

safetensors' own writer wants all tensors in memory (docs/decisions/0005-http-clients.md); here a tensor's bytes are
written at their place some rows at a time, so memory stays bounded however large the model is.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from languagepipes_node.weights.directory import sync_directory
from languagepipes_node.weights.errors import BrokenFile, NoSpace, UnsupportedFile
from languagepipes_node.weights.headers import ITEM_BYTES, build_header

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""(dtype, shape) by name, in the order of a file."""


@contextlib.contextmanager
def complete_directory(output: Path, needed_bytes: int) -> Iterator[Path]:
    """A directory to fill; it becomes `output` when the block ends, and leaves nothing behind if that raises.

    Raises NoSpace where needed_bytes are not free or the volume cannot be written.
    """
    partial = output.parent / f".{output.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _check_space(output.parent, needed_bytes)
        partial.mkdir()
        yield partial
        sync_directory(partial)
        _put_in_place(partial, output)
    except OSError as error:
        raise NoSpace(f"{output.parent}: cannot write the converted model: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class TensorWriter:
    """One safetensors file that holds `tensors`; each is appended to until it is whole.

    progress: called with bytes written since the last call. Leaving the block without an error holds the file against
    the safetensors library and raises BrokenFile if a tensor is not whole.
    """

    def __init__(self, path: Path, tensors: Tensors, made_from: str, progress: Callable[[int], None]) -> None:
        self._path, self._tensors, self._progress = path, dict(tensors), progress
        header = build_header(tensors, {"format": "pt", "converted_from": made_from})
        self._next, self._end = {}, {}
        position = len(header)
        for name, held in tensors.items():
            self._next[name] = position
            position += tensor_bytes(held)
            self._end[name] = position
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._write(0, header)

    def append(self, name: str, data: bytes | npt.NDArray[np.generic]) -> None:
        """Bytes, or an array of the tensor's dtype, behind what the tensor has so far."""
        view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data if isinstance(data, np.ndarray) else data
        if self._next[name] + len(view) > self._end[name]:
            raise BrokenFile(f"tensor {name}: more bytes than its shape has")
        self._write(self._next[name], view)
        self._next[name] += len(view)
        self._progress(len(view))

    def _write(self, position: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            count = os.pwrite(self._file, view, position)
            position, view = position + count, view[count:]

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                os.fsync(self._file)
        finally:
            os.close(self._file)
        if kind is None:
            self._check()

    def _check(self) -> None:
        for name, position in self._next.items():
            if position != self._end[name]:
                raise BrokenFile(f"tensor {name}: {self._end[name] - position} bytes of it were not written")
        try:
            with safe_open(self._path, framework="numpy") as written:
                found = {name: tuple(written.get_slice(name).get_shape()) for name in written.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise BrokenFile(
                f"{self._path.name}: the safetensors library cannot read what was converted: {error}"
            ) from error
        if found != {name: tuple(shape) for name, (_, shape) in self._tensors.items()}:
            raise BrokenFile(f"{self._path.name}: the converted file does not hold the tensors that it should")


def tensor_bytes(held: tuple[str, tuple[int, ...]]) -> int:
    """Of (dtype, shape)."""
    dtype, shape = held
    return math.prod(shape) * ITEM_BYTES[dtype]


def encode(values: npt.NDArray[np.float32], dtype: str, name: str) -> bytes:
    """Raw little-endian bytes in `dtype`, rounded to nearest even. Raises UnsupportedFile if out of range."""
    if not np.isfinite(values).all():
        raise UnsupportedFile(f"tensor {name}: holds values that are not finite; the file is damaged")
    if dtype == "float32":
        return values.astype("<f4", copy=False).tobytes()
    if dtype == "float16":
        with np.errstate(over="ignore"):
            half = values.astype("<f2")
        if not np.isfinite(half).all():
            raise UnsupportedFile(f"tensor {name}: values beyond float16's 65504; set dtype: bfloat16")
        return half.tobytes()
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2").tobytes()


def decode(data: bytes, dtype: str) -> npt.NDArray[np.float32]:
    """The inverse of `encode`, flat."""
    if dtype == "bfloat16":
        return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, dtype="<f4" if dtype == "float32" else "<f2").astype(np.float32)


def write_text(path: Path, text: str | bytes) -> None:
    """With the bytes on the disk when it returns."""
    with path.open("wb") as stream:
        stream.write(text.encode() if isinstance(text, str) else text)
        stream.flush()
        os.fsync(stream.fileno())


def to_json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _check_space(directory: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed_bytes:
        raise NoSpace(
            f"{directory}: the converted model needs {needed_bytes / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free; "
            "enlarge spec.cache.size"
        )


def _put_in_place(partial: Path, output: Path) -> None:
    try:
        partial.rename(output)
    except OSError:
        if not output.is_dir():  # another process was faster: its result is the same
            raise
    sync_directory(output.parent)
