"""Which files of a source make up a model, and what their headers say of it. Fetches headers and small files alone."""

from __future__ import annotations

from dataclasses import dataclass

from languagepipes_api.facts import ModelFacts
from languagepipes_api.plan import Quantization

from languagepipes_node.model.facts import StoredTypes, read_facts
from languagepipes_node.store.cache import Cache
from languagepipes_node.store.sources import LocalSource, RemoteSource, Snapshot, SourceFile
from languagepipes_node.weights.directory import is_model_file, read_file_range
from languagepipes_node.weights.errors import BrokenFile, UnsupportedFile
from languagepipes_node.weights.index import (
    MAX_JSON_BYTES,
    SINGLE_FILE,
    IndexEntry,
    WeightsIndex,
    build_index,
    read_json,
    weight_files,
)


@dataclass(frozen=True)
class Selection:
    """Which files of a listing make up the model. gguf: the one GGUF file to convert, else None."""

    weights: tuple[SourceFile, ...]
    small: tuple[SourceFile, ...]
    gguf: SourceFile | None = None

    @property
    def files(self) -> tuple[SourceFile, ...]:
        return (*self.small, *self.weights)

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


class RangeReader:
    """Reads ranges of a snapshot's files: from verified copies where there are any; small files are kept."""

    def __init__(self, source: RemoteSource | LocalSource, cache: Cache | None, snapshot: Snapshot) -> None:
        self._source = source
        self._cache = cache
        self._snapshot = snapshot
        self._small: dict[str, bytes] = {}

    def __call__(self, name: str, begin: int, end: int) -> bytes:
        file = self._snapshot.file(name)
        if file is None:
            raise BrokenFile(f"{name}: not in the source's listing")
        cache = self._cache
        source = self._source
        if cache is not None and isinstance(source, RemoteSource):
            blob = cache.verified(source.url, self._snapshot, file)
            if blob is not None:
                return read_file_range(blob, begin, end)
        if name.endswith(".json") and file.size <= MAX_JSON_BYTES:
            if name not in self._small:
                self._small[name] = self._source.read_range(self._snapshot, file, 0, file.size)
            return self._small[name][begin:end]
        return self._source.read_range(self._snapshot, file, begin, end)


def select(source: RemoteSource | LocalSource, snapshot: Snapshot, cache: Cache | None = None) -> Selection:
    """Choose the model's files. Raises UnsupportedFile or FileNotFoundAtSource, naming what was found instead."""
    files = {file.name: file for file in snapshot.files}
    named = getattr(source, "gguf_file", None)
    ggufs = [name for name in files if name.endswith(".gguf")]
    if named is None and not any(name.endswith(".safetensors") for name in files) and ggufs:
        if len(ggufs) > 1:
            raise UnsupportedFile(
                f"{source.url} holds {len(ggufs)} GGUF files; name one in spec.model.source: {source.url}/{ggufs[0]}"
            )
        named = ggufs[0]
    if named is not None:
        if named not in files:
            raise UnsupportedFile(f"{source.url}: there is no {named} at {snapshot.revision}")
        return Selection((files[named],), (), files[named])
    reader = RangeReader(source, cache, snapshot)
    weights = weight_files({name: file.size for name, file in files.items()}, reader)
    small = [
        file
        for name, file in files.items()
        if is_model_file(name) and not name.endswith(".safetensors") and "/" not in name and file.size <= MAX_JSON_BYTES
    ]
    for name in weights:
        if name not in files:
            raise BrokenFile(f"the index names {name!r}, which {source.url} does not hold; complete the source")
    return Selection(tuple(files[name] for name in weights), tuple(small))


def inspect_model(
    read: RangeReader, selection: Selection, snapshot: Snapshot, dtype: str | None
) -> tuple[WeightsIndex, ModelFacts]:
    """Index and facts by reading small files and headers only."""
    total = selection.total_bytes
    if selection.gguf is not None:
        return _inspect_gguf(read, selection.gguf, snapshot, dtype, total)
    files = {file.name: file.size for file in selection.files}
    config = read_json("config.json", files, read)
    index = build_index(files, read)
    return index, read_facts(config, index, snapshot.revision, total)


def _inspect_gguf(
    read: RangeReader, file: SourceFile, snapshot: Snapshot, dtype: str | None, total: int
) -> tuple[WeightsIndex, ModelFacts]:
    from languagepipes_node.weights.gguf_convert import (
        inspect_gguf_ranges,
        natural_dtype,
        quantised_kinds,
        types_note,
    )
    from languagepipes_node.weights.headers import ITEM_BYTES

    header, plan = inspect_gguf_ranges(
        lambda begin, end: read(file.name, begin, end), file_bytes=file.size, file=file.name, dtype=dtype
    )
    chosen = dtype or natural_dtype(header)
    tensors, position = {}, 0
    for conversion in plan.tensors:
        nbytes = ITEM_BYTES[chosen]
        for extent in conversion.shape:
            nbytes *= extent
        tensors[conversion.name] = IndexEntry(SINGLE_FILE, chosen, conversion.shape, position, position + nbytes)
        position += nbytes
    index = WeightsIndex(tensors, {SINGLE_FILE: position})
    modes: tuple[Quantization, ...] = ("int8", "int4", "asStored")
    stored = StoredTypes(quantised_kinds(plan, "asStored"), {mode: types_note(plan, mode) for mode in modes})
    return index, read_facts(plan.config, index, snapshot.revision, total, stored)
