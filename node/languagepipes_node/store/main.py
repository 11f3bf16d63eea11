"""The role `store`: serve at once, and download the model meanwhile, until SIGTERM."""

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
# What was corrected elsewhere (a model's terms accepted, a repository created) cannot be seen from here.
_TRY_AGAIN_SECONDS = 600.0


def run(settings: MemberSettings) -> int:
    """Returns 0 after SIGTERM, 1 if the server cannot start. Why a model cannot be downloaded is on /v1/progress."""
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
        termination.report("store", error)
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
    threading.Thread(target=_download, args=arguments, name="store-download", daemon=True).start()
    process.wait_for_signal(stopping)
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


def _download(
    settings: MemberSettings,
    url: str,
    trusted: ssl.SSLContext | None,
    store_state: StoreState,
    state: MemberState,
    stopping: threading.Event,
) -> None:
    """Download all files. After a failure: again once what may have caused it has changed, or after ten minutes."""
    report = _progress_reporter(store_state, state)
    while True:
        seen = _possible_causes(settings, url)
        _try_download(settings, url, trusted, store_state, report, stopping)
        if not store_state.failed:
            return
        again = time.monotonic() + _TRY_AGAIN_SECONDS
        while _possible_causes(settings, url) == seen and time.monotonic() < again:
            if stopping.wait(_LOOK_AGAIN_SECONDS):
                return
        log.info("downloading again")
        store_state.done_bytes = store_state.total_bytes = 0


def _try_download(
    settings: MemberSettings,
    url: str,
    trusted: ssl.SSLContext | None,
    store_state: StoreState,
    report: Callable[[], None],
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
        store_state.arithmetic.keep_in(cache.arithmetic)
    except Exception as error:
        if not isinstance(error, WeightsError):  # a fault of ours; the store stays up and reports it
            log.exception("the store cannot start")
            error = BrokenFile(f"internal error before the model was read: {type(error).__name__}")
        log.error("%s: %s", error.reason, error)
        store_state.error = error
        store_state.phase = "Failed"
        report()
        return
    Downloader(
        source,
        cache,
        store_state,
        dtype=settings.dtype,
        quantization=settings.quantization,
        wait=stopping.wait,
        on_progress=report,
    ).run()


def _possible_causes(settings: MemberSettings, url: str) -> tuple[object, ...]:
    """What a person changes to correct a failure: the token, the cache's volume, the files on a claim."""
    token = volume = files = None
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
                files = status.st_mtime_ns, status.st_mode, status.st_uid, os.access(source.root, os.R_OK)
    return token, volume, files


def _progress_reporter(store_state: StoreState, state: MemberState) -> Callable[[], None]:
    """A function to call at each progress: it copies the store's state into health and metrics."""

    def report() -> None:
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

    return report


def default_cache_dir() -> Path:
    """Where models are kept when no cache is configured (`languagepipes up`)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "languagepipes"
