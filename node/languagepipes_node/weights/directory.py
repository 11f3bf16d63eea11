"""A model as a directory of safetensors files on this machine: tests, benchmarks, and what the store serves from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from languagepipes_node.weights.errors import BrokenFile, FileNotFoundAtSource
from languagepipes_node.weights.index import WeightsIndex, build_index
from languagepipes_node.weights.source import TensorInfo

_SMALL_SUFFIXES = (".json", ".txt", ".model", ".jinja")


def list_files(path: Path) -> dict[str, int]:
    """Name → size of the plain files at the top of `path`, hidden ones left out."""
    try:
        return {
            entry.name: entry.stat().st_size
            for entry in sorted(os.scandir(path), key=lambda item: item.name)
            if entry.is_file() and not entry.name.startswith(".")
        }
    except OSError as error:
        raise FileNotFoundAtSource(f"{path}: {error.strerror}; name a directory that holds the model") from error


def is_model_file(name: str) -> bool:
    """Only safetensors, JSON and tokenizer files are ever fetched or served."""
    return name.endswith((".safetensors", *_SMALL_SUFFIXES)) and not name.startswith(".")


def sync_directory(path: Path) -> None:
    """Names of files that were made, renamed or removed in it are on the disk when this returns. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file_range(path: Path, begin: int, end: int) -> bytes:
    """Exactly `[begin, end)`. Raises BrokenFile if the file is shorter, FileNotFoundAtSource if it cannot be read."""
    try:
        with path.open("rb") as stream:
            stream.seek(begin)
            data = stream.read(end - begin)
    except OSError as error:
        raise FileNotFoundAtSource(f"{path}: {error.strerror}") from error
    if len(data) != end - begin:
        raise BrokenFile(f"{path}: ends at byte {begin + len(data)}, before {end}; it was cut short")
    return data


class SafetensorsDirectory:
    """A `TensorSource` over a directory. Headers are read and checked at once; raises WeightsError."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        listed = list_files(self.path)
        files = {name: size for name, size in listed.items() if is_model_file(name)}
        # Pickles are kept in the listing here, so that a directory that holds nothing else is refused by their name.
        self.index: WeightsIndex = build_index(files if _has_weights(files) else listed, self._read)
        self.bytes_read = 0

    def names(self) -> Iterator[str]:
        return iter(self.index.tensors)

    def info(self, name: str) -> TensorInfo:
        entry = self.index.tensors[name]
        return TensorInfo(name, entry.dtype, entry.shape, entry.nbytes)

    def read_into(self, name: str, destination: memoryview) -> None:
        entry = self.index.tensors[name]
        self._read_range_into(entry.file, entry.begin, exactly(name, destination, entry.nbytes))

    def read_rows_into(self, name: str, first_row: int, rows: int, destination: memoryview) -> None:
        """Fill `destination` with rows `[first_row, first_row + rows)` of the tensor's first dimension."""
        entry = self.index.tensors[name]
        begin, nbytes = row_range(name, entry.shape, entry.nbytes, first_row, rows)
        self._read_range_into(entry.file, entry.begin + begin, exactly(name, destination, nbytes))

    def file(self, name: str) -> bytes:
        if name not in self.index.files:
            raise KeyError(name)
        return read_file_range(self.path / name, 0, self.index.files[name])

    def _read(self, file: str, begin: int, end: int) -> bytes:
        return read_file_range(self.path / file, begin, end)

    def _read_range_into(self, file: str, begin: int, destination: memoryview) -> None:
        try:
            with (self.path / file).open("rb", buffering=0) as stream:
                stream.seek(begin)
                filled = 0
                while filled < len(destination):
                    count = stream.readinto(destination[filled:])
                    if not count:
                        raise BrokenFile(f"{file}: ends at byte {begin + filled}; it was changed after its header")
                    filled += count
        except OSError as error:
            raise FileNotFoundAtSource(f"{self.path / file}: {error.strerror}") from error
        self.bytes_read += len(destination)


def exactly(name: str, destination: memoryview, nbytes: int) -> memoryview:
    """`destination` as flat writable bytes. Raises ValueError unless it is exactly `nbytes` long."""
    flat = destination.cast("B") if destination.format != "B" or destination.ndim != 1 else destination
    if flat.readonly or len(flat) != nbytes:
        raise ValueError(f"tensor {name}: {nbytes} bytes do not go into {len(flat)} (readonly={flat.readonly})")
    return flat


def row_range(name: str, shape: tuple[int, ...], nbytes: int, first_row: int, rows: int) -> tuple[int, int]:
    """(offset, size) in bytes of some rows. Raises ValueError outside the tensor."""
    if not shape or not 0 <= first_row <= first_row + rows <= shape[0]:
        raise ValueError(f"tensor {name}: no rows [{first_row}, {first_row + rows}) in shape {list(shape)}")
    row_bytes = nbytes // shape[0] if shape[0] else 0
    return first_row * row_bytes, rows * row_bytes


def _has_weights(files: dict[str, int]) -> bool:
    return any(name.endswith(".safetensors") for name in files)
