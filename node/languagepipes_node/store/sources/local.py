"""Files that are there already: file:// (for `languagepipes up`) and pvc:// (a mounted claim). Served in place."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

from languagepipes_node.store.sources.base import Snapshot, SourceFile
from languagepipes_node.weights.directory import is_model_file, list_files, read_file_range
from languagepipes_node.weights.errors import BrokenFile, FileNotFoundAtSource, UnsupportedSource

_HASHED_PREFIX_BYTES = 1024 * 1024
# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md: the first line, and the size that no pointer reaches.
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LFS_POINTER_BYTES = 1024


class FileSource:
    """A directory or one .gguf file. revision: a digest of names, sizes, times and small files' content."""

    def __init__(self, url: str, path: Path) -> None:
        self.url = url
        self.revision = ""
        self._path = path
        self.gguf_file = path.name if path.suffix == ".gguf" else None

    @property
    def root(self) -> Path:
        """The directory or file that the URL names."""
        return self._path

    def resolve(self) -> Snapshot:
        """The listing. Raises FileNotFoundAtSource, UnsupportedSource, or BrokenFile for a Git LFS pointer."""
        directory = self._path
        if not directory.exists():
            raise FileNotFoundAtSource(f"{self.url}: {directory} does not exist; correct spec.model.source")
        if directory.is_file():
            if self.gguf_file is None:
                raise UnsupportedSource(
                    f"{self.url}: a single file must be a .gguf; for safetensors name the directory, "
                    "which holds config.json and the tokenizer too"
                )
            files = {directory.name: directory.stat().st_size}
        else:
            self.gguf_file = None
            files = list_files(directory)
        weights_are_safetensors = any(name.endswith(".safetensors") for name in files)
        digest = hashlib.sha256()
        for name, size in files.items():
            path = self._where(name)
            digest.update(f"{name}\0{size}\0{path.stat().st_mtime_ns}\0".encode())
            # The times tell weights apart; small files are cheap to read, and so is what holds the headers.
            head = read_file_range(path, 0, min(size, _HASHED_PREFIX_BYTES))
            digest.update(head)
            of_the_model = is_model_file(name) or (name.endswith(".gguf") and not weights_are_safetensors)
            if of_the_model and size < _LFS_POINTER_BYTES and head.startswith(_LFS_POINTER):
                raise BrokenFile(
                    f"{self.url}: {name} is a Git LFS pointer, {size} bytes that stand for the file: run `git lfs "
                    "pull` where it was cloned, and copy the file itself"
                )
        return Snapshot(
            "local-" + digest.hexdigest()[:34], tuple(SourceFile(name, size) for name, size in files.items())
        )

    def read_range(self, snapshot: Snapshot, file: SourceFile, begin: int, end: int) -> bytes:
        return read_file_range(self._where(file.name), begin, end)

    def path(self, file: SourceFile) -> Path:
        return self._where(file.name)

    def _where(self, name: str) -> Path:
        return self._path if self._path.is_file() else self._path / name


def file_source(url: str) -> FileSource:
    """`file:///absolute/path`. Raises UnsupportedSource."""
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise UnsupportedSource(f"source {url!r} is not of the form file:///absolute/path")
    return FileSource(url, Path(unquote(parts.path)))


def volume_source(url: str, volumes_dir: Path | None) -> FileSource:
    """`pvc://claim/path`, the claim mounted at `volumes_dir/claim`. Raises UnsupportedSource."""
    parts = urlsplit(url)
    if volumes_dir is None:
        raise UnsupportedSource(f"source {url!r} needs a cluster, which mounts the claim; here use file://")
    inside = unquote(parts.path).lstrip("/")
    if not parts.netloc or ".." in Path(inside).parts or "/" in parts.netloc:
        raise UnsupportedSource(f"source {url!r} is not of the form pvc://claim/path")
    return FileSource(url, volumes_dir / parts.netloc / inside)
