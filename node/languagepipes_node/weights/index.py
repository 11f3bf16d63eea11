"""Which file holds which tensor: the sum of all headers of one model, built from ranges wherever the files are.

`build_index` is given names, sizes and a way to read a range; so a model on the Hub and one on a disk take the same
path, and headers can be read before anything is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from languagepipes_node.weights.errors import BrokenFile, FileNotFoundAtSource, UnsupportedFile
from languagepipes_node.weights.headers import LENGTH_BYTES, header_end, parse_header, refuse_pickles

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MAX_JSON_BYTES = 64 * 1024 * 1024  # tokenizer.json of the largest vocabularies is 35 MB
# Most headers fit: one request instead of two.
_FIRST_READ_BYTES = 64 * 1024

ReadRange = Callable[[str, int, int], bytes]
"""(file, begin, end) → exactly those bytes."""


@dataclass(frozen=True)
class IndexEntry:
    """A tensor's place: raw little-endian bytes `[begin, end)` of `file`, absolute."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class WeightsIndex:
    """tensors: by name. files: every served file's size in bytes, weights and small files alike."""

    tensors: Mapping[str, IndexEntry]
    files: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        return {
            "tensors": {
                name: {
                    "file": entry.file,
                    "dtype": entry.dtype,
                    "shape": list(entry.shape),
                    "begin": entry.begin,
                    "end": entry.end,
                }
                for name, entry in self.tensors.items()
            },
            "files": dict(self.files),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WeightsIndex:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        files = {str(name): int(size) for name, size in data["files"].items()}
        tensors = {}
        for name, fields in data["tensors"].items():
            entry = IndexEntry(
                str(fields["file"]),
                str(fields["dtype"]),
                tuple(int(extent) for extent in fields["shape"]),
                int(fields["begin"]),
                int(fields["end"]),
            )
            if not 0 <= entry.begin <= entry.end <= files[entry.file]:
                raise ValueError(f"tensor {name!r} lies outside {entry.file}")
            tensors[str(name)] = entry
        return cls(tensors, files)


def weight_files(files: Mapping[str, int], read: ReadRange) -> list[str]:
    """The safetensors files that make up the model, from its listing. Raises FileError or FileNotFoundAtSource.

    model.safetensors, as transformers has it: an index beside it was left over when the shards were saved as one file.
    Otherwise what an index file names; otherwise the only .safetensors file at the top.
    """
    if SINGLE_FILE in files:
        return [SINGLE_FILE]
    if INDEX_FILE in files:
        return sorted(set(_weight_map(files, read).values()))
    candidates = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    if len(candidates) == 1:
        return candidates
    if candidates:
        raise UnsupportedFile(
            f"{len(candidates)} .safetensors files but no {INDEX_FILE} to say which belong to the model; add one"
        )
    for name in files:
        refuse_pickles(name)
    raise FileNotFoundAtSource(
        f"there is no {SINGLE_FILE} and no {INDEX_FILE}; name a source that holds the model as safetensors or GGUF"
    )


def build_index(files: Mapping[str, int], read: ReadRange) -> WeightsIndex:
    """Read all headers. `files`: every file to be served, with its size. Raises WeightsError."""
    chosen = weight_files(files, read)
    tensors: dict[str, IndexEntry] = {}
    for file in chosen:
        if file not in files:
            raise FileNotFoundAtSource(f"{INDEX_FILE} names {file!r}, which is not there; complete the source")
        for name, entry in read_header(file, files[file], read).items():
            if name in tensors:
                raise BrokenFile(f"tensor {name[:200]!r} is in both {tensors[name].file} and {file}")
            tensors[name] = IndexEntry(file, entry.dtype, entry.shape, entry.begin, entry.end)
    if INDEX_FILE in files and SINGLE_FILE not in files:
        for name, file in _weight_map(files, read).items():
            if name not in tensors or tensors[name].file != file:
                raise BrokenFile(f"{INDEX_FILE} promises tensor {name[:200]!r} in {file}, whose header lacks it")
    if not tensors:
        raise BrokenFile(f"{', '.join(chosen)}: no tensor in it")
    served = {name: size for name, size in files.items() if name in chosen or not name.endswith(".safetensors")}
    return WeightsIndex(tensors, served)


def read_header(file: str, file_bytes: int, read: ReadRange) -> dict[str, Any]:
    """One file's entries, with one read for small headers and two for large ones."""
    first = read(file, 0, min(file_bytes, _FIRST_READ_BYTES))
    end = header_end(first, file_bytes=file_bytes, file=file)
    if end > len(first):
        first += read(file, len(first), end)
    return parse_header(first[LENGTH_BYTES:end], file_bytes=file_bytes, file=file)


def read_json(file: str, files: Mapping[str, int], read: ReadRange) -> dict[str, Any]:
    """A small JSON object beside the weights. Raises FileNotFoundAtSource or BrokenFile."""
    if file not in files:
        raise FileNotFoundAtSource(f"there is no {file}; a model needs it beside its weights")
    if files[file] > MAX_JSON_BYTES:
        raise BrokenFile(f"{file}: {files[file]} bytes are more than the {MAX_JSON_BYTES} allowed for a JSON file")
    try:
        value = json.loads(read(file, 0, files[file]))
    except (ValueError, RecursionError) as error:
        raise BrokenFile(f"{file}: not JSON ({type(error).__name__}); fetch it again") from error
    if not isinstance(value, dict):
        raise BrokenFile(f"{file}: not a JSON object")
    return value


def _weight_map(files: Mapping[str, int], read: ReadRange) -> dict[str, str]:
    weight_map = read_json(INDEX_FILE, files, read).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BrokenFile(f"{INDEX_FILE}: no weight_map in it")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not is_plain_name(file):
            raise BrokenFile(f"{INDEX_FILE}: tensor {name[:200]!r} is said to be in {str(file)[:200]!r}, no file name")
        refuse_pickles(file)
        if not file.endswith(".safetensors"):
            raise UnsupportedFile(f"{INDEX_FILE}: names {file[:200]!r}; only .safetensors files are read")
    return weight_map


def is_plain_name(name: str) -> bool:
    """Whether `name` stays inside its directory on every system: relative, no `..`, no backslash, NUL or drive."""
    parts = PurePosixPath(name).parts
    return (
        bool(parts)
        and not name.startswith("/")
        and ".." not in parts
        and str(PurePosixPath(name)) == name
        and not any(character in name for character in "\\\0:")
        and len(name) <= 512
    )
