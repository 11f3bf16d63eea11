"""The role `store`: serve at once, fill the store's state behind it, until told to stop."""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

from languagepipes_api.member_settings import MemberSettings

from languagepipes_node import health, metrics, process, termination
from languagepipes_node.health import MemberState
from languagepipes_node.member import SettingsError, required
from languagepipes_node.net.tls import TlsFiles
from languagepipes_node.store.cache import Cache
from languagepipes_node.store.downloader import Downloader
from languagepipes_node.store.server import StoreServer
from languagepipes_node.store.sources import http, open_source
from languagepipes_node.store.sources.local import FileSource
from languagepipes_node.store.state import StoreState
from languagepipes_node.weights.errors import BrokenFile, WeightsError

log = logging.getLogger(__name__)

_LOOK_AGAIN_SECONDS = 5.0
# What was mended elsewhere (a model's terms accepted, a repository made) cannot be seen from here.
_TRY_AGAIN_SECONDS = 600.0


def run(settings: MemberSettings) -> int:
    """Returns 0 after SIGTERM, 1 if the server cannot start. A model that cannot be had is told on /v1/progress."""
    stopping = process.stop_on_signals()
    state = MemberState("store")
    store_state = StoreState()
    state.extra = lambda: {"progress": store_state.progress()}
    try:
        telemetry_server = health.serve(
            settings.telemetry_listen,
            state,
            ready=lambda: (store_state.facts is not None and not stopping.is_set(), state.message or store_state.phase),
        )
        try:
            _serve(settings, store_state, state, stopping)
        finally:
            telemetry_server.shutdown()
    except Exception as error:
        termination.tell("store", error)
        return 1
    return 0


def _serve(settings: MemberSettings, store_state: StoreState, state: MemberState, stopping: threading.Event) -> None:
    listen = required(settings.store_listen, "store_listen")
    source = required(settings.source, "source")
    trusted = _trusted(settings)
    state.tls = TlsFiles(settings.tls_dir)
    server = StoreServer(listen, state.tls, settings.identity, store_state)
    server.start()
    arguments = (settings, source, trusted, store_state, state, stopping)
    threading.Thread(target=_fill, args=arguments, name="store-filling", daemon=True).start()
    stopping.wait()
    server.stop()


def _trusted(settings: MemberSettings) -> ssl.SSLContext | None:
    """The authorities that the Hub may be signed by; None for the system's alone. Raises SettingsError."""
    file = settings.hub_ca_file
    if file is None:
        return None
    try:
        return http.trusting(file)
    except OSError as error:
        raise SettingsError(
            f"LANGUAGEPIPES_HUB_CA_FILE: {file} holds no certificates that can be read ({error.strerror or error}): "
            "give it the PEM text of the Hub's authority (-----BEGIN CERTIFICATE-----…)"
        ) from error


def _fill(
    settings: MemberSettings,
    url: str,
    trusted: ssl.SSLContext | None,
    store_state: StoreState,
    state: MemberState,
    stopping: threading.Event,
) -> None:
    """Fetch all files. A failure stands until what may have caused it looks otherwise; then all is tried once more."""
    show = _shower(store_state, state)
    while True:
        seen = _surroundings(settings, url)
        _try_to_fill(settings, url, trusted, store_state, show, stopping)
        if not store_state.failed:
            return
        again = time.monotonic() + _TRY_AGAIN_SECONDS
        while _surroundings(settings, url) == seen and time.monotonic() < again:
            if stopping.wait(_LOOK_AGAIN_SECONDS):
                return
        log.info("trying once more")
        store_state.done_bytes = store_state.total_bytes = 0


def _try_to_fill(
    settings: MemberSettings,
    url: str,
    trusted: ssl.SSLContext | None,
    store_state: StoreState,
    show: Callable[[], None],
    stopping: threading.Event,
) -> None:
    try:
        source = open_source(
            url,
            settings.revision,
            token_file=settings.token_file,
            volumes_dir=settings.volumes_dir,
            hub_trusted=trusted,
        )
        cache = Cache(settings.cache_dir or default_cache_dir())
    except Exception as error:
        if not isinstance(error, WeightsError):  # a fault of ours; the store stays up and says so
            log.exception("the store cannot begin")
            error = BrokenFile(f"internal error before the model was read: {type(error).__name__}")
        log.error("%s: %s", error.reason, error)
        store_state.error = error
        store_state.phase = "Failed"
        show()
        return
    Downloader(source, cache, store_state, dtype=settings.dtype, wait=stopping.wait, on_progress=show).run()


def _surroundings(settings: MemberSettings, url: str) -> tuple[object, ...]:
    """What a person changes to mend a failure: the token, the cache's volume, the files on a claim."""
    token = volume = place = None
    cache = settings.cache_dir or default_cache_dir()
    with contextlib.suppress(OSError):
        token = settings.token_file.read_bytes() if settings.token_file else None
    with contextlib.suppress(OSError):
        # The size alone: what is free changes by our own doing.
        volume = os.statvfs(cache).f_blocks, os.access(cache, os.W_OK)
    if url.startswith(("pvc:", "file:")):
        with contextlib.suppress(OSError, WeightsError):
            source = open_source(url, volumes_dir=settings.volumes_dir)
            if isinstance(source, FileSource):
                status = source.root.stat()
                place = status.st_mtime_ns, status.st_mode, status.st_uid, os.access(source.root, os.R_OK)
    return token, volume, place


def _shower(store_state: StoreState, state: MemberState) -> Callable[[], None]:
    """What is called at each step forward: health and metrics say what the store's state says."""

    def show() -> None:
        metrics.STORE_FETCHED_BYTES.set(store_state.done_bytes)
        metrics.STORE_TOTAL_BYTES.set(store_state.total_bytes)
        state.loaded_bytes, state.total_bytes = store_state.done_bytes, store_state.total_bytes
        message = str(store_state.error) if store_state.error is not None else store_state.phase
        if store_state.failed:
            state.enter("failed", message)
        elif store_state.phase == "Ready":
            state.enter("ready", message)
        else:
            # Liveness counts progress in "loading" alone: a source that is away or slow to list is no fault of ours.
            waiting = store_state.error is not None or store_state.phase == "Resolving"
            state.enter("waiting" if waiting else "loading", message)

    return show


def default_cache_dir() -> Path:
    """Where models are kept when no cache is configured (`languagepipes up`)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "languagepipes"
