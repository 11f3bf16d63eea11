"""The store's volume: verified files that outlive a restart, and downloads that resume where they stopped.

    root/pins/KEY.json       source and revision → the commit and listing they were resolved to
    root/blobs/KEY           one verified file; KEY is its published hash, else a digest of where it is from
    root/partial/KEY         a download in progress, locked by whoever writes it
    root/converted/KEY/      a GGUF file as safetensors (weights.gguf_convert.converted_name)
    root/digests.json        SHA-256 of local GGUF files by path, size and time
    root/arithmetic.json     what members measured to be fastest (store.arithmetic); without it they measure again

A file reaches blobs/ by rename after its hash was checked, so every file there is complete. Knows no network.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from languagepipes_node.store.sources.base import Snapshot, SourceFile
from languagepipes_node.weights.errors import CacheUnusable, NoSpace

# Left free, for the directory's own growth and small files beside.
SPARE_BYTES = 16 * 1024 * 1024


class Cache:
    """Raises CacheUnusable if `root` cannot be created and written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs, self.partial, self.converted = root / "blobs", root / "partial", root / "converted"
        self._pins = root / "pins"
        self.arithmetic = root / "arithmetic.json"
        try:
            for directory in (self.blobs, self.partial, self.converted, self._pins):
                directory.mkdir(parents=True, exist_ok=True)
            if not os.access(self.blobs, os.W_OK):
                raise PermissionError(13, "no permission to write")
        except OSError as error:
            raise CacheUnusable(
                f"cache directory {root}: {error.strerror}; give the store a volume it can write"
            ) from error

    def pinned(self, url: str, revision: str) -> Snapshot | None:
        """What this source and revision were resolved to before, if ever."""
        try:
            data = json.loads(self._pin_path(url, revision).read_text())
            return Snapshot(data["revision"], tuple(SourceFile(**file) for file in data["files"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # an unreadable pin is resolved again

    def pin(self, url: str, revision: str, snapshot: Snapshot) -> None:
        write_atomically(self._pin_path(url, revision), json.dumps(asdict(snapshot)).encode())

    def unpin(self, url: str, revision: str) -> None:
        """Resolve again at the next start: what was pinned is no longer available."""
        self._pin_path(url, revision).unlink(missing_ok=True)

    def blob(self, url: str, snapshot: Snapshot, file: SourceFile) -> Path:
        """Where a verified file is, or will be."""
        return self.blobs / blob_key(url, snapshot, file)

    def has(self, url: str, snapshot: Snapshot, file: SourceFile) -> bool:
        try:
            return self.blob(url, snapshot, file).stat().st_size == file.size
        except OSError:
            return False

    def verified(self, url: str, snapshot: Snapshot, file: SourceFile) -> Path | None:
        """Where the verified file is; None if there is none."""
        return self.blob(url, snapshot, file) if self.has(url, snapshot, file) else None

    def partial_bytes(self, url: str, snapshot: Snapshot, file: SourceFile) -> int:
        try:
            return min(file.size, (self.partial / blob_key(url, snapshot, file)).stat().st_size)
        except OSError:
            return 0

    def make_room(self, needed_bytes: int, keep: Iterable[Path]) -> None:
        """Check space before the first byte; if it is short, delete what `keep` does not name, oldest first.

        Raises NoSpace with the numbers and the remedy.
        """
        kept = set(keep)
        others = [
            path
            for directory in (self.blobs, self.partial, self.converted)
            for path in directory.iterdir()
            if path not in kept
        ]
        others.sort(key=lambda path: path.stat().st_mtime)
        free = shutil.disk_usage(self.root).free
        for path in others:
            if free >= needed_bytes + SPARE_BYTES:
                break
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            free = shutil.disk_usage(self.root).free
        if free < needed_bytes + SPARE_BYTES:
            raise NoSpace(
                f"cache directory {self.root}: {gib(needed_bytes)} more are needed, {gib(free)} are free; "
                "enlarge spec.cache.size"
            )

    def local_digest(self, path: Path) -> str | None:
        """The SHA-256 of a local file, if it was computed before and the file looks unchanged."""
        return self._digests().get(_fingerprint(path))

    def remember_digest(self, path: Path, digest: str) -> None:
        digests = {**self._digests(), _fingerprint(path): digest}
        write_atomically(self.root / "digests.json", json.dumps(dict(list(digests.items())[-256:])).encode())

    def _digests(self) -> dict[str, str]:
        try:
            value = json.loads((self.root / "digests.json").read_text())
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _pin_path(self, url: str, revision: str) -> Path:
        return self._pins / f"{hashlib.sha256(f'{url}@{revision}'.encode()).hexdigest()[:40]}.json"


def blob_key(url: str, snapshot: Snapshot, file: SourceFile) -> str:
    """Equal content under one key where the source publishes a hash; else one key a place, revision and validator."""
    if file.sha256 is not None and _is_hex(file.sha256, 64):
        return f"sha256-{file.sha256}"
    if file.git_sha1 is not None and _is_hex(file.git_sha1, 40):
        return f"git-{file.git_sha1}"
    place = repr((url, snapshot.revision, file.name, file.size, file.validator))
    return f"place-{hashlib.sha256(place.encode()).hexdigest()}"


def write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB"


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and all(character in "0123456789abcdef" for character in text)


def _fingerprint(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"
