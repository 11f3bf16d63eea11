"""A store that downloads its files in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from languagepipes_node.store.cache import Cache
from languagepipes_node.store.downloader import Downloader
from languagepipes_node.store.sources import open_source
from languagepipes_node.store.state import StoreState


def fill(
    url: str,
    cache: Path,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    token_file: Path | None = None,
    volumes_dir: Path | None = None,
    attempts: int = 50,
    on_progress: Callable[[StoreState], None] = lambda store_state: None,
) -> StoreState:
    """Download to the end, without waiting between attempts; gives up after `attempts` pauses."""
    store_state, pauses = StoreState(), [0]

    def wait(seconds: float) -> bool:
        pauses[0] += seconds > 0
        time.sleep(min(seconds, 0.001))
        return pauses[0] > attempts

    source = open_source(url, revision, token_file=token_file, volumes_dir=volumes_dir)
    downloader = Downloader(
        source, Cache(cache), store_state, dtype=dtype, wait=wait, on_progress=lambda: on_progress(store_state)
    )
    downloader.run()
    return store_state
