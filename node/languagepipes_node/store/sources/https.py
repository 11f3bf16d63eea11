"""https://: a mirror. A directory with the Hub's file names, or one .gguf file.

A directory listing is no standard, so known names are asked for. A file SHA256SUMS (as `sha256sum * > SHA256SUMS`
writes it) is believed if it is there, and then everything it names is verified.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterator
from urllib.parse import quote, unquote, urlsplit

from languagepipes_node.store.sources import http
from languagepipes_node.store.sources.base import Snapshot, SourceFile
from languagepipes_node.weights.errors import BrokenFile, FileNotFoundAtSource, UnsupportedSource
from languagepipes_node.weights.index import INDEX_FILE, MAX_JSON_BYTES, SINGLE_FILE, is_plain_name

SUMS_FILE = "SHA256SUMS"
_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
_SUM_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
_MAX_SHARDS = 4096


class MirrorSource:
    """`https://host/directory` or `https://host/….gguf` (http on loopback alone). Raises UnsupportedSource."""

    def __init__(self, url: str, revision: str | None = None) -> None:
        parts = urlsplit(url)
        if not parts.hostname or parts.query or parts.fragment or parts.username or parts.password:
            raise UnsupportedSource(
                f"source {url.split('?')[0].rpartition('@')[2]!r} is not a plain https:// address; "
                "leave out queries, fragments and passwords"
            )
        http.require_tls(url, what="source")
        self.url = url
        self.revision = revision or ""
        self.gguf_file = unquote(posixpath.basename(parts.path)) if parts.path.endswith(".gguf") else None
        self._base = (posixpath.dirname(url) if self.gguf_file else url.rstrip("/")) + "/"
        self._client = http.new_client()

    def resolve(self) -> Snapshot:
        sums = self._sums()
        names = [INDEX_FILE, SINGLE_FILE, *_SMALL_FILES] if self.gguf_file is None else [self.gguf_file]
        files = {name: file for name in names if (file := self._probe(name, sums)) is not None}
        if SINGLE_FILE in files:
            files.pop(INDEX_FILE, None)  # left over when the shards were saved as one file
        elif INDEX_FILE in files:
            for name in self._shards(files[INDEX_FILE]):
                if (file := self._probe(name, sums)) is None:
                    raise FileNotFoundAtSource(f"{INDEX_FILE} of {self.url} names {name!r}, which is not there")
                files[name] = file
        if not files:
            raise FileNotFoundAtSource(
                f"{self.url} has neither {SINGLE_FILE} nor {INDEX_FILE} nor config.json; correct spec.model.source"
            )
        digest = hashlib.sha256(repr(sorted((f.name, f.size, f.sha256, f.validator) for f in files.values())).encode())
        return Snapshot(digest.hexdigest()[:40], tuple(files.values()))

    def read_range(self, snapshot: Snapshot, file: SourceFile, begin: int, end: int) -> bytes:
        return http.read_range(self._client, self._address(file.name), {}, begin, end, what=self._address(file.name))

    def stream(self, snapshot: Snapshot, file: SourceFile, begin: int) -> tuple[int, Iterator[bytes]]:
        headers = {"If-Range": file.validator} if file.validator and begin else {}
        address = self._address(file.name)
        return http.stream_from(self._client, address, headers, begin, what=address, size=file.size)

    def _address(self, name: str) -> str:
        return self._base + quote(name)

    def _probe(self, name: str, sums: dict[str, str]) -> SourceFile | None:
        """Name, size and validator by asking for the first byte, which servers without HEAD answer too."""
        address = self._address(name)
        try:
            with http.get(self._client, address, {"Range": "bytes=0-0"}, what=address) as response:
                total = (
                    response.headers.get("Content-Range", "").rpartition("/")[2]
                    if response.status_code == 206
                    else response.headers.get("Content-Length", "")
                )
                etag = response.headers.get("ETag", "")
        except FileNotFoundAtSource:
            return None
        if not total.isdigit():
            raise UnsupportedSource(f"{address}: the server does not say how long it is; use one that supports ranges")
        validator = etag if etag and not etag.startswith("W/") else None
        return SourceFile(name, int(total), sha256=sums.get(name), validator=validator)

    def _shards(self, index: SourceFile) -> list[str]:
        if index.size > MAX_JSON_BYTES:
            raise BrokenFile(f"{INDEX_FILE}: {index.size} bytes are more than a JSON file may have")
        address = self._address(INDEX_FILE)
        data = http.read_range(self._client, address, {}, 0, index.size, what=address)
        try:
            shards = sorted(set(json.loads(data)["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BrokenFile(f"{address}: no weight_map in it ({type(error).__name__})") from error
        if len(shards) > _MAX_SHARDS or not all(is_plain_name(name) for name in shards):
            raise BrokenFile(f"{address}: names more than {_MAX_SHARDS} shards, or no plain file names")
        return shards

    def _sums(self) -> dict[str, str]:
        file = self._probe(SUMS_FILE, {})
        if file is None or file.size > MAX_JSON_BYTES:
            return {}
        address = self._address(SUMS_FILE)
        text = http.read_range(self._client, address, {}, 0, file.size, what=address).decode("utf-8", "replace")
        matches = (_SUM_LINE.fullmatch(line) for line in text.splitlines())
        return {match[2].removeprefix("./"): match[1].lower() for match in matches if match}
