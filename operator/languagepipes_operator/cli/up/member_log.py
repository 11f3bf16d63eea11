"""What a member prints, in a file of bounded size: rotated while the member writes, and read for its last lines.

A member writes into the file itself, by no pipe: one that must print never waits for `up`, and what it printed last is
there whatever became of `up`. So the file is copied and then cut to nothing (logrotate calls it copytruncate) while
the member has it open: it was opened with O_APPEND, so the next line starts at the new end. A line that is
written between the last read and the cut, a few microseconds in ten megabytes, is lost. Sizes and numbers are
the kubelet's defaults (containerLogMaxSize, containerLogMaxFiles).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO

MAX_BYTES = 10 * 1024 * 1024
MAX_FILES = 5
_COPY_BYTES = 1024 * 1024
_LAST_BYTES = 16 * 1024
_LAST_LINES = 8


class MemberLog:
    """`path` and its older parts `path.1` (the newest of them), `path.2`, …: files of max_bytes each, or a little more
    where a member writes much between two calls of `bound`.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, files: int = MAX_FILES) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._files = files
        # Where this life of the member begins, in bytes into `path`, and into `path.1` once it was rotated.
        self._offset = 0
        self._older_offset: int | None = None

    def open(self) -> IO[bytes]:
        """The file for the next life of the member, to be its stdout and stderr. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.bound()
        file = self.path.open("ab")
        self._offset, self._older_offset = file.tell(), None
        return file

    def bound(self) -> None:
        """Rotate the file if it is full. Cheap if it is not; never raises."""
        # A volume without space, or a directory that somebody removed, stops no member. The next call tries again.
        with contextlib.suppress(OSError):
            if self.path.stat().st_size >= self._max_bytes:
                self._rotate()

    def last_lines(self) -> tuple[str, ...]:
        """The last lines of this life; printable characters only."""
        data = _tail(self.path, self._offset)
        if self._older_offset is not None and len(data) < _LAST_BYTES:
            data = _tail(self._part(1), self._older_offset, _LAST_BYTES - len(data)) + data
        text = data.decode("utf-8", "replace")
        lines = ["".join(char if char.isprintable() else " " for char in line).rstrip() for line in text.splitlines()]
        return tuple(line for line in lines if line)[-_LAST_LINES:]

    def _part(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _rotate(self) -> None:
        for number in range(self._files - 2, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self._part(number), self._part(number + 1))
        copy = self._part(1)
        try:
            with self.path.open("r+b", buffering=0) as source, copy.open("wb") as target:
                while os.sendfile(target.fileno(), source.fileno(), None, _COPY_BYTES):
                    pass
                source.truncate(0)
        except OSError:
            copy.unlink(missing_ok=True)
            raise
        self._older_offset, self._offset = self._offset, 0


def _tail(path: Path, offset: int, most: int = _LAST_BYTES) -> bytes:
    """At most that many bytes of the end of `path`, none before `offset`; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(offset, size - most))
            return file.read(most)
    except OSError:
        return b""
