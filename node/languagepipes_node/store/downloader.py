"""From a source to a model that is served: resolve → facts from headers → fetch and verify → convert → serve.

Each step is named in `download_all`. A network error is retried with back-off and reported meanwhile; what a person
must correct ends in phase Failed with reason and remedy.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from languagepipes_api.facts import ModelFacts
from languagepipes_api.store_answers import StorePhase

from languagepipes_node.model.facts import read_facts
from languagepipes_node.store.cache import Cache
from languagepipes_node.store.fetch import fetch, sha256_of
from languagepipes_node.store.sources import LocalSource, RemoteSource, Snapshot, SourceFile
from languagepipes_node.store.state import StoreState
from languagepipes_node.weights.directory import is_model_file, list_files, read_file_range
from languagepipes_node.weights.errors import (
    BrokenFile,
    CacheUnusable,
    HashMismatch,
    NoSpace,
    SourceError,
    SourceUnreadable,
    UnsupportedFile,
    WeightsError,
)
from languagepipes_node.weights.index import (
    MAX_JSON_BYTES,
    SINGLE_FILE,
    IndexEntry,
    WeightsIndex,
    build_index,
    read_json,
    weight_files,
)

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_HASH_ATTEMPTS = 2

Result = TypeVar("Result")


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


class Downloader:
    """Fills `store_state` from `source`. wait: sleeps, and returns True if the process is to stop.

    on_progress: called whenever bytes came or a phase began.
    """

    def __init__(
        self,
        source: RemoteSource | LocalSource,
        cache: Cache,
        store_state: StoreState,
        *,
        dtype: str | None,
        wait: Callable[[float], bool],
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._cache = cache
        self._store_state = store_state
        self._dtype = dtype
        self._wait = wait
        self._on_progress = on_progress

    def run(self) -> None:
        """Returns when all files are served, when it failed for good, or when the process is to stop."""
        try:
            self.download_all()
        except Stopped:
            return
        except WeightsError as error:
            if isinstance(error, SourceError):
                self._cache.unpin(self._source.url, self._source.revision)
            self._fail(error)
        except OSError as error:
            self._fail(self._explain(error))
        except Exception as error:  # a fault of ours; the store stays up and reports it
            log.exception("the download failed")
            self._fail(BrokenFile(f"internal error while reading the model: {type(error).__name__}"))

    def _explain(self, error: OSError) -> WeightsError:
        """An unexpected error of a disk: the cache's, or the source's if that is on a disk."""
        reason = error.strerror or type(error).__name__
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return NoSpace(f"cache directory {self._cache.root} is full ({reason}); enlarge spec.cache.size")
        name = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
        if name is None or name.is_relative_to(self._cache.root):
            return CacheUnusable(
                f"cache directory {self._cache.root}: {reason}; "
                "give the store a volume that works and that it can write"
            )
        return SourceUnreadable(
            f"{self._source.url}: {name}: {reason}; let user {os.getuid()} (group {os.getgid()}) read the files"
        )

    def download_all(self) -> None:
        """All of it, in named steps. Raises WeightsError or Stopped."""
        snapshot = self.resolve()
        selection = self._retrying(lambda: select(self._source, snapshot, self._cache))
        self._store_state.total_bytes = selection.total_bytes
        index, facts = self._retrying(lambda: self.read_facts(snapshot, selection))
        self._store_state.facts = facts
        if selection.gguf is None:
            self._publish_index(index, facts.revision)
        if isinstance(self._source, RemoteSource):
            paths = self.download(self._source, snapshot, selection)
        else:
            paths = {file.name: self._source.path(file) for file in selection.files}
            self._store_state.done_bytes = selection.total_bytes
        if selection.gguf is not None:
            self.convert(selection.gguf, paths[selection.gguf.name], facts.revision)
        else:
            self._check_unchanged(index, paths)
            for name, path in paths.items():
                self._store_state.put(name, path)
        self._enter("Ready")

    def resolve(self) -> Snapshot:
        """The listing, from the cache if this source and revision were resolved before."""
        self._enter("Resolving")
        source = self._source
        remote = isinstance(source, RemoteSource)
        if remote and (pinned := self._cache.pinned(source.url, source.revision)) is not None:
            return pinned
        snapshot = self._retrying(source.resolve)
        if remote:
            self._cache.pin(source.url, source.revision, snapshot)
        return snapshot

    def read_facts(self, snapshot: Snapshot, selection: Selection) -> tuple[WeightsIndex, ModelFacts]:
        """From config.json and headers alone, wherever they are."""
        reader = RangeReader(self._source, self._cache, snapshot)
        return inspect_model(reader, selection, snapshot, self._dtype)

    def download(self, source: RemoteSource, snapshot: Snapshot, selection: Selection) -> dict[str, Path]:
        """Fetch and verify every file; each may be served as soon as it is verified."""
        self._enter("Downloading")
        blobs = {file.name: self._cache.blob(source.url, snapshot, file) for file in selection.files}
        missing = [file for file in selection.files if not self._cache.has(source.url, snapshot, file)]
        needed = sum(file.size - self._cache.partial_bytes(source.url, snapshot, file) for file in missing)
        partials = [self._cache.partial / blob.name for blob in blobs.values()]
        if needed or selection.gguf is not None:
            self._cache.make_room(needed, [*blobs.values(), *partials, *self._converted(selection)])
        for file in selection.files:
            if file in missing:
                self._fetch(source, snapshot, file)
            else:
                self._advance(file.size)
            if selection.gguf is None:
                self._store_state.put(file.name, blobs[file.name])
        return blobs

    def convert(self, file: SourceFile, path: Path, revision: str) -> None:
        """Convert the GGUF file unless that was done before, and serve the result."""
        from languagepipes_node.weights.gguf_convert import (
            convert,
            converted_bytes,
            converted_name,
            inspect_gguf,
            natural_dtype,
        )
        from languagepipes_node.weights.gguf_tokenizer import splitting_note

        self._enter("Verifying")
        digest = file.sha256 or self._cache.local_digest(path)
        if digest is None:
            digest = sha256_of(path, lambda nbytes: self._on_progress())
            self._cache.remember_digest(path, digest)
        header, plan = inspect_gguf(path, dtype=self._dtype)
        if (note := splitting_note(header.metadata, file=path.name)) is not None:
            log.warning("%s", note)
        dtype = self._dtype or natural_dtype(header)
        output = self._cache.converted / converted_name(digest, dtype)
        if not output.exists():
            needed = converted_bytes(plan, dtype)
            self._cache.make_room(needed, [path, output])
            self._enter("Converting")
            self._store_state.total_bytes += needed
            convert(path, output, dtype=dtype, progress=self._advance)
        files = list_files(output)
        index = build_index(files, lambda name, begin, end: read_file_range(output / name, begin, end))
        self._publish_index(index, revision)
        for name in files:
            self._store_state.put(name, output / name)

    def _fetch(self, source: RemoteSource, snapshot: Snapshot, file: SourceFile) -> None:
        done_before = self._store_state.done_bytes

        def present(nbytes: int) -> None:
            self._advance(done_before + nbytes - self._store_state.done_bytes)

        for attempt in range(1, _HASH_ATTEMPTS + 1):
            try:
                self._retrying(lambda: fetch(source, snapshot, file, self._cache, present))
                return
            except HashMismatch as error:
                if attempt == _HASH_ATTEMPTS:
                    raise
                log.warning("%s; fetching it once more", error)

    def _check_unchanged(self, index: WeightsIndex, paths: dict[str, Path]) -> None:
        """The headers came by ranges before any hash was checked: compare them with the verified files."""
        if not isinstance(self._source, RemoteSource):
            return
        self._enter("Verifying")
        again = build_index(
            {name: path.stat().st_size for name, path in paths.items()},
            lambda name, begin, end: read_file_range(paths[name], begin, end),
        )
        if again.tensors != index.tensors:
            raise BrokenFile(
                "the verified files' headers differ from those read first; the source was changed meanwhile"
            )

    def _converted(self, selection: Selection) -> Iterable[Path]:
        if selection.gguf is None or selection.gguf.sha256 is None:
            return []
        return [path for path in self._cache.converted.iterdir() if path.name.startswith(selection.gguf.sha256)]

    def _publish_index(self, index: WeightsIndex, revision: str) -> None:
        data = {"revision": revision, **index.to_json()}
        self._store_state.index_json = json.dumps(data, separators=(",", ":")).encode()
        self._store_state.index = index

    def _retrying(self, attempt: Callable[[], Result]) -> Result:
        pause, done = _FIRST_PAUSE_SECONDS, self._store_state.done_bytes
        while True:
            try:
                result = attempt()
                self._store_state.error = None
                return result
            except WeightsError as error:
                if not error.retriable:
                    raise
                if self._store_state.error is None or str(self._store_state.error) != str(error):
                    log.warning("%s", error)
                self._store_state.error = error
            self._on_progress()
            if self._store_state.done_bytes > done:
                pause, done = _FIRST_PAUSE_SECONDS, self._store_state.done_bytes
            if self._wait(pause * random.uniform(0.75, 1.25)):  # noqa: S311 - spreads stores out, no secret
                raise Stopped
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _advance(self, nbytes: int) -> None:
        if nbytes > 0 and self._store_state.error is not None:
            self._store_state.error = None
        self._store_state.done_bytes += nbytes
        self._on_progress()
        if self._wait(0):
            raise Stopped

    def _enter(self, phase: StorePhase) -> None:
        self._store_state.phase = phase
        self._on_progress()

    def _fail(self, error: WeightsError) -> None:
        log.error("%s: %s", error.reason, error)
        self._store_state.error = error
        self._enter("Failed")


class Stopped(Exception):
    """The process is to stop; no failure."""


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
    from languagepipes_node.weights.gguf_convert import inspect_gguf_ranges, natural_dtype
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
    return index, read_facts(plan.config, index, snapshot.revision, total)
