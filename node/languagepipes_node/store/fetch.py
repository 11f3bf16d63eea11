"""Fetch one file into the cache: resume by Range, hash while writing, rename when the hash is right.

One attempt a call; whoever calls decides whether and when to try again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from languagepipes_node.store.cache import Cache
from languagepipes_node.store.sources.base import RemoteSource, Snapshot, SourceFile
from languagepipes_node.weights.directory import sync_directory
from languagepipes_node.weights.errors import CacheUnusable, HashMismatch, NoSpace, SourceUnreachable

_HASH_CHUNK_BYTES = 4 * 1024 * 1024


class Hasher:
    """What a file's published hash is compared with: SHA-256, or a git blob's SHA-1 (which names the size first)."""

    def __init__(self, file: SourceFile) -> None:
        self._wanted = file.sha256 or file.git_sha1
        self._hash = hashlib.sha256()
        if file.sha256 is None and file.git_sha1 is not None:
            self._hash = hashlib.sha1(usedforsecurity=False)
            self._hash.update(b"blob %d\0" % file.size)

    def update(self, data: bytes) -> None:
        self._hash.update(data)

    def check(self, file: SourceFile) -> None:
        found = self._hash.hexdigest()
        if self._wanted is not None and found != self._wanted.lower():
            raise HashMismatch(
                f"{file.name}: its bytes have the hash {found}, the source publishes {self._wanted}; the source or a "
                "proxy before it is broken"
            )


def fetch(
    source: RemoteSource, snapshot: Snapshot, file: SourceFile, cache: Cache, progress: Callable[[int], None]
) -> Path:
    """Fetch unless it is there, and return the verified file.

    progress: called with how many bytes of the file are there.
    Raises SourceUnreachable after a broken connection (what came is kept), HashMismatch (what came is deleted), NoSpace
    or another WeightsError.
    """
    target = cache.blob(source.url, snapshot, file)
    partial = cache.partial / target.name
    try:
        with partial.open("a+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # two stores may share a cache; the second finds the file complete
            if cache.has(source.url, snapshot, file):
                progress(file.size)
            else:
                _complete(source, snapshot, file, stream, progress)
                os.fsync(stream.fileno())
                partial.replace(target)
                sync_directory(target.parent)
                return target
        partial.unlink(missing_ok=True)
    except HashMismatch:
        partial.unlink(missing_ok=True)
        raise
    except OSError as error:
        if error.errno in (28, 122):  # ENOSPC, EDQUOT
            raise NoSpace(
                f"{file.name}: the cache's volume is full ({error.strerror}); enlarge spec.cache.size"
            ) from error
        raise CacheUnusable(f"{file.name}: the cache cannot be written: {error.strerror}") from error
    return target


def _complete(
    source: RemoteSource, snapshot: Snapshot, file: SourceFile, stream: BinaryIO, progress: Callable[[int], None]
) -> None:
    """Append to `stream` until it holds the whole file, and check its hash."""
    hasher = Hasher(file)
    present = _hash_present(stream, file, hasher, progress)
    if present < file.size:
        begin, chunks = source.stream(snapshot, file, present)
        if begin != present:
            stream.truncate(0)
            hasher, present = Hasher(file), 0
        for chunk in chunks:
            if present + len(chunk) > file.size:
                raise HashMismatch(f"{file.name}: the source sends more than the {file.size} bytes that it states")
            stream.write(chunk)
            hasher.update(chunk)
            present += len(chunk)
            progress(present)
        stream.flush()
    if present < file.size:
        raise SourceUnreachable(
            f"{file.name}: the connection ended after {present} of {file.size} bytes; going on from there"
        )
    hasher.check(file)


def _hash_present(stream: BinaryIO, file: SourceFile, hasher: Hasher, progress: Callable[[int], None]) -> int:
    """Hash what an earlier attempt left; more than the file's size is thrown away."""
    present = stream.seek(0, os.SEEK_END)
    if present > file.size:
        stream.truncate(0)
        present = 0
    stream.seek(0)
    progress(present)
    while chunk := stream.read(_HASH_CHUNK_BYTES):
        hasher.update(chunk)
        progress(present)  # no more bytes, but progress
    return present


def sha256_of(path: Path, progress: Callable[[int], None]) -> str:
    """Of a local file; progress as bytes read."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()
