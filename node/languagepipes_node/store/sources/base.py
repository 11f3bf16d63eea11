"""What every source offers: a pinned listing, ranges, and either a path or a stream for each file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class SourceFile:
    """One file of a pinned listing. size in bytes. sha256 and git_sha1 (a git blob's id): as the source publishes them.

    validator: an ETag or the like, which tells one version from another where no hash is published.
    """

    name: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None
    validator: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """A source at one moment. revision: a commit, or what stands for one; the same for the same content."""

    revision: str
    files: tuple[SourceFile, ...]

    def file(self, name: str) -> SourceFile | None:
        return next((file for file in self.files if file.name == name), None)


class Source(Protocol):
    """url: as in spec.model.source; revision: as asked."""

    url: str
    revision: str

    def resolve(self) -> Snapshot:
        """List the files and pin the revision. Raises SourceError."""
        ...

    def read_range(self, snapshot: Snapshot, file: SourceFile, begin: int, end: int) -> bytes:
        """Exactly the bytes `[begin, end)`. Raises WeightsError."""
        ...


@runtime_checkable
class RemoteSource(Source, Protocol):
    """Files that must be fetched before they are served."""

    def stream(self, snapshot: Snapshot, file: SourceFile, begin: int) -> tuple[int, Iterator[bytes]]:
        """(where the bytes really begin: `begin`, or 0 if the source ignores ranges; the bytes from there to the end).

        Raises SourceError, also in the middle of iterating.
        """
        ...


@runtime_checkable
class LocalSource(Source, Protocol):
    """Files that are served where they lie."""

    def path(self, file: SourceFile) -> Path:
        """Where the file lies."""
        ...
