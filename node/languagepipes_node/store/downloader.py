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
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from languagepipes_api.facts import ModelFacts
from languagepipes_api.plan import Quantization
from languagepipes_api.store_answers import StorePhase

from languagepipes_node.store.cache import Cache, blob_key
from languagepipes_node.store.fetch import fetch, sha256_of
from languagepipes_node.store.selection import RangeReader, Selection, inspect_model, select
from languagepipes_node.store.side_by_side import side_by_side
from languagepipes_node.store.sources import LocalSource, RemoteSource, Snapshot, SourceFile
from languagepipes_node.store.state import StoreState
from languagepipes_node.weights.directory import list_files, read_file_range
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
    WeightsIndex,
    build_index,
)

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_HASH_ATTEMPTS = 2
# One connection seldom fills a network, and one core hashes 0.5 to 2 GB/s.
_FILES_AT_ONCE = 4

Result = TypeVar("Result")


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
        quantization: Quantization = "none",
        wait: Callable[[float], bool],
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._cache = cache
        self._store_state = store_state
        self._dtype = dtype
        self._quantization = quantization
        self._wait = wait
        self._on_progress = on_progress
        # Files are fetched by several threads.
        self._lock = threading.Lock()
        self._giving_up = threading.Event()

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
        self._check_quantization(facts)
        self._store_state.quantization = self._quantization
        self._store_state.facts = facts
        if not self._converts(selection):
            self._publish_index(index, facts.revision)
        if isinstance(self._source, RemoteSource):
            paths = self.download(self._source, snapshot, selection)
        else:
            paths = {file.name: self._source.path(file) for file in selection.files}
            self._store_state.done_bytes = selection.total_bytes
        if selection.gguf is not None:
            self.convert(selection.gguf, paths[selection.gguf.name], facts.revision)
        elif self._converts(selection):
            self._check_unchanged(index, paths)
            self.quantise(snapshot, selection, index, paths, facts.revision)
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
        """Fetch and verify every file, shards side by side; each may be served as soon as it is verified."""
        self._enter("Downloading")
        blobs = {file.name: self._cache.blob(source.url, snapshot, file) for file in selection.files}
        missing = [file for file in selection.files if not self._cache.has(source.url, snapshot, file)]
        needed = sum(file.size - self._cache.partial_bytes(source.url, snapshot, file) for file in missing)
        partials = [self._cache.partial / blob.name for blob in blobs.values()]
        if needed or self._converts(selection):
            made = self._converted(snapshot, selection)
            self._cache.make_room(needed, [*blobs.values(), *partials, *made])

        def serve(file: SourceFile) -> None:
            if file in missing:
                self._fetch(source, snapshot, file)
            else:
                self._advance(file.size)
            if not self._converts(selection):
                self._store_state.put(file.name, blobs[file.name])

        for file in selection.small:
            serve(file)
        side_by_side(serve, selection.weights, threads=_FILES_AT_ONCE, giving_up=self._giving_up)
        return blobs

    def _converts(self, selection: Selection) -> bool:
        """Whether what is served is made of the files, and not the files themselves."""
        return selection.gguf is not None or self._quantization != "none"

    def _check_quantization(self, facts: ModelFacts) -> None:
        """Before anything is downloaded. Raises UnsupportedFile."""
        mode = self._quantization
        if mode == "none" or mode in facts.quantised:
            return
        others = ", ".join(each for each in ("int8", "int4") if each in facts.quantised)
        raise UnsupportedFile(
            f"{self._source.url} ({facts.family}, stored as {facts.stored_dtype}) has nothing that can be served with "
            f"spec.model.quantization {mode}: set spec.model.quantization to {others + ' or ' if others else ''}none"
        )

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
        mode = self._quantization
        header, plan = inspect_gguf(path, dtype=self._dtype)
        if (note := splitting_note(header.metadata, file=path.name)) is not None:
            log.warning("%s", note)
        dtype = self._dtype or natural_dtype(header)
        output = self._cache.converted / converted_name(digest, dtype, mode)
        if not output.exists():
            needed = converted_bytes(plan, dtype, mode)
            self._cache.make_room(needed, [path, output])
            self._enter("Converting")
            self._store_state.total_bytes += needed
            convert(path, output, dtype=dtype, quantization=mode, progress=self._advance)
        self._serve(output, revision)

    def quantise(
        self, snapshot: Snapshot, selection: Selection, index: WeightsIndex, paths: dict[str, Path], revision: str
    ) -> None:
        """Quantise the safetensors files unless that was done before, and serve the result."""
        from languagepipes_node.weights.quantise import quantise_model, quantised_bytes

        output = self._quantised_directory(snapshot, selection)
        if not output.exists():
            needed = quantised_bytes(index, self._quantization)
            kept = paths.values() if isinstance(self._source, RemoteSource) else ()
            self._cache.make_room(needed, [*kept, output])
            self._enter("Converting")
            self._store_state.total_bytes += needed
            quantise_model(paths, index, output, quantization=self._quantization, progress=self._advance)
        self._serve(output, revision)

    def _quantised_directory(self, snapshot: Snapshot, selection: Selection) -> Path:
        from languagepipes_node.weights.quantise import quantised_name

        keys = [f"{file.name} {blob_key(self._source.url, snapshot, file)}" for file in selection.files]
        return self._cache.converted / quantised_name(keys, self._quantization)

    def _serve(self, output: Path, revision: str) -> None:
        files = list_files(output)
        index = build_index(files, lambda name, begin, end: read_file_range(output / name, begin, end))
        self._publish_index(index, revision)
        for name in files:
            self._store_state.put(name, output / name)

    def _fetch(self, source: RemoteSource, snapshot: Snapshot, file: SourceFile) -> None:
        there = 0

        def present(nbytes: int) -> None:
            nonlocal there
            there, before = nbytes, there
            self._advance(there - before)

        for attempt in range(1, _HASH_ATTEMPTS + 1):
            try:
                self._retrying(lambda: fetch(source, snapshot, file, self._cache, present), done_bytes=lambda: there)
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

    def _converted(self, snapshot: Snapshot, selection: Selection) -> Iterable[Path]:
        """What was made of the files before."""
        if selection.gguf is None:
            return [self._quantised_directory(snapshot, selection)] if self._converts(selection) else []
        if selection.gguf.sha256 is None:
            return []
        return [path for path in self._cache.converted.iterdir() if path.name.startswith(selection.gguf.sha256)]

    def _publish_index(self, index: WeightsIndex, revision: str) -> None:
        data = {"revision": revision, **index.to_json()}
        self._store_state.index_json = json.dumps(data, separators=(",", ":")).encode()
        self._store_state.index = index

    def _retrying(self, attempt: Callable[[], Result], done_bytes: Callable[[], int] = lambda: 0) -> Result:
        """What `attempt` returns once it succeeds. done_bytes: how far it came; then pauses are short again."""
        pause, done = _FIRST_PAUSE_SECONDS, done_bytes()
        while True:
            try:
                result = attempt()
                self._note(None)
                return result
            except WeightsError as error:
                if not error.retriable:
                    raise
                if self._store_state.error is None or str(self._store_state.error) != str(error):
                    log.warning("%s", error)
                self._note(error)
            self._on_progress()
            if done_bytes() > done:
                pause, done = _FIRST_PAUSE_SECONDS, done_bytes()
            stopped = self._wait(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads stores out, no secret
            if stopped or self._giving_up.is_set():
                raise Stopped
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _note(self, error: WeightsError | None, *, more_bytes: int = 0) -> None:
        """Raises Stopped once a file failed for good: what others still do changes nothing."""
        with self._lock:
            if self._giving_up.is_set():
                raise Stopped
            self._store_state.error = error
            self._store_state.done_bytes += more_bytes

    def _advance(self, nbytes: int) -> None:
        self._note(None if nbytes > 0 else self._store_state.error, more_bytes=nbytes)
        self._on_progress()
        if self._wait(0):
            raise Stopped

    def _enter(self, phase: StorePhase) -> None:
        self._store_state.phase = phase
        self._on_progress()

    def _fail(self, error: WeightsError) -> None:
        log.error("%s: %s", error.reason, error)
        with self._lock:
            self._store_state.error = error
        self._enter("Failed")


class Stopped(Exception):
    """The process is to stop; no failure."""
