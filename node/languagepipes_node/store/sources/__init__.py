"""Where models come from, by the scheme of spec.model.source."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlsplit

from languagepipes_node.store.sources.base import LocalSource, RemoteSource, Snapshot, Source, SourceFile
from languagepipes_node.weights.errors import UnsupportedSource

__all__ = ["LocalSource", "RemoteSource", "Snapshot", "Source", "SourceFile", "open_source"]


def open_source(
    url: str,
    revision: str | None = None,
    *,
    token_file: Path | None = None,
    volumes_dir: Path | None = None,
    hub_trusted: ssl.SSLContext | None = None,
) -> RemoteSource | LocalSource:
    """Raises UnsupportedSource, naming what is wrong. A token is taken for hf:// alone.

    hub_trusted: the authorities that an hf:// source may be signed by; None for the system's.
    """
    scheme = urlsplit(url).scheme
    if token_file is not None and scheme != "hf":
        raise UnsupportedSource(f"source {url!r}: a token is for hf:// only; remove tokenSecretRef")
    if scheme == "hf":
        from languagepipes_node.store.sources.hf import HubSource

        return HubSource(url, revision, token_file=token_file, trusted=hub_trusted)
    if scheme in ("https", "http"):
        from languagepipes_node.store.sources.https import MirrorSource

        return MirrorSource(url, revision)
    from languagepipes_node.store.sources.local import file_source, volume_source

    if scheme == "file":
        return file_source(url)
    if scheme == "pvc":
        return volume_source(url, volumes_dir)
    raise UnsupportedSource(f"source {url!r}: schemes are hf://, pvc://, https:// and file://")
