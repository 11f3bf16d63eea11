"""kopf feeds the events of LanguagePipes, and nothing else of it is used: no finalizers, no annotations, no peering."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import kopf
from languagepipes_api.names import API_GROUP, API_VERSION

from languagepipes_operator.kube.client import Kube
from languagepipes_operator.kube.informer import SILENCE_SECONDS, ObjectKey, key_of
from languagepipes_operator.kube.kinds import PIPE


class _ForEver:
    """Delays in seconds without an end: an API server that is away for an hour must not end this process."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.5, 1.0, 2.0, 4.0), itertools.repeat(8.0))


async def feed(
    kube: Kube,
    namespaces: Sequence[str],
    *,
    on_seen: Callable[[dict[str, Any]], None],
    on_gone: Callable[[ObjectKey, str], None],
) -> None:
    """Run kopf and tell of each pipe that it sees; ends, or raises, only with kopf itself. namespaces: none for all.

    kopf has a thread and an event loop of its own: it takes over its loop's signals, and cancels whatever else runs
    there when it ends. The callbacks are called in the caller's loop.
    """
    loop = asyncio.get_running_loop()
    stop, ended = threading.Event(), loop.create_future()

    def tell(event: kopf.RawEvent) -> None:
        body = cast("dict[str, Any]", event["object"])
        raw = {**body, "metadata": dict(body["metadata"])}
        if event["type"] == "DELETED":
            loop.call_soon_threadsafe(on_gone, key_of(raw), raw["metadata"]["uid"])
        else:
            loop.call_soon_threadsafe(on_seen, raw)

    def run() -> None:
        problem: BaseException | None = None
        try:
            asyncio.run(
                kopf.operator(
                    registry=_registry(kube, tell),
                    settings=_settings(),
                    standalone=True,
                    clusterwide=not namespaces,
                    namespaces=namespaces,
                    stop_flag=stop,
                )
            )
        except BaseException as error:
            problem = error
        with contextlib.suppress(RuntimeError):  # the caller's loop is closed
            loop.call_soon_threadsafe(_settle, ended, problem)

    threading.Thread(target=run, name="kopf", daemon=True).start()
    try:
        await ended
    finally:
        stop.set()


def _settle(future: asyncio.Future[None], problem: BaseException | None) -> None:
    if future.done():
        return
    if problem is None:
        future.set_result(None)
    else:
        future.set_exception(problem if isinstance(problem, Exception) else RuntimeError(repr(problem)))


def _registry(kube: Kube, tell: Callable[[kopf.RawEvent], None]) -> kopf.OperatorRegistry:
    """The handlers, as values of one operator: kopf's default registry is the whole process's."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        """As our own client logs in. Called again whenever the API server says 401, so a new token is found then."""
        return await connection_of(kube)

    @kopf.on.event(API_GROUP, API_VERSION, PIPE.plural, registry=registry)
    async def seen(event: kopf.RawEvent, **_: Any) -> None:
        tell(event)

    return registry


def _settings() -> kopf.OperatorSettings:
    """What makes kopf a plain, patient reader."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.scanning.disabled = True
    # Never silent for longer than bookmarks take, never for ever on a dead connection.
    settings.watching.server_timeout = 5 * 60
    settings.watching.client_timeout = 5 * 60 + 30
    settings.watching.connect_timeout = 10
    settings.watching.inactivity_timeout = SILENCE_SECONDS
    settings.queueing.exit_timeout = 0.5
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 60
    settings.networking.error_backoffs = _ForEver()
    return settings


async def connection_of(kube: Kube) -> kopf.ConnectionInfo:
    """Our client's configuration in kopf's terms."""
    configuration = kube.configuration
    header = await configuration.get_api_key_with_prefix("BearerToken")
    scheme, _, token = (header or "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=kube.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        scheme=scheme or None,
        token=token or None,
        trust_env=True,
    )


def quiet() -> None:
    """kopf says at INFO what is of no interest where it only reads."""
    logging.getLogger("kopf").setLevel(logging.WARNING)
    # It warns that it cannot have the signals of a thread that is not the main one: so it shall be.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
