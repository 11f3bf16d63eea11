"""kopf's handlers: kopf owns the process, its event loop, its signals and the watch of LanguagePipes.

Everything else is in the operator's parts (see `controller`), which start and stop with kopf. No handler here writes
to a LanguagePipe: no finalizers, no annotations, no peering, no Events from kopf.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import kopf
from languagepipes_api.names import API_GROUP, API_VERSION

from languagepipes_operator.controller import Operator, started
from languagepipes_operator.kube.informer import SILENCE_SECONDS, ObjectKey, key_of
from languagepipes_operator.kube.kinds import PIPE, Manifest
from languagepipes_operator.observe.scale_writes import trimmed_pipe
from languagepipes_operator.settings import OperatorSettings

_PIPES = (API_GROUP, API_VERSION, PIPE.plural)


async def serve(settings: OperatorSettings) -> None:
    """Until SIGTERM or SIGINT. Raises what ended a part of the operator, or kept it from starting."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    await kopf.operator(
        registry=registry_of(settings, ended),
        settings=kopf_settings(),
        clusterwide=settings.cluster_wide,
        namespaces=settings.namespaces,
        stop_flag=ended,
    )


def registry_of(settings: OperatorSettings, ended: asyncio.Future[None]) -> kopf.OperatorRegistry:
    """The handlers of one operator; kopf's default registry is the whole process's.

    ended: kopf's stop flag. It gets the error that ends a part of the operator, which kopf then raises.
    """
    registry = kopf.OperatorRegistry()
    parts = AsyncExitStack()
    operator: Operator

    @kopf.on.startup(registry=registry)
    async def start(**indexes: Any) -> None:
        """kopf asks the API server nothing before this returns: not before there is a CRD that can be watched."""
        nonlocal operator
        try:
            operator = await parts.enter_async_context(started(settings, indexes["pipes"], ended))
        except Exception:
            # kopf would try again. It has the stop flag now, with the error, and cancels this.
            await asyncio.Event().wait()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        """Called again whenever the API server answers 401 or the connection broke in a way that TLS cannot mend."""
        return kopf.AiohttpSession(server=operator.host, aiohttp_session=await operator.log_in())

    @kopf.index(*_PIPES, id="pipes", registry=registry)
    async def index(body: kopf.Body, **_: Any) -> dict[ObjectKey, Manifest]:
        manifest = trimmed_pipe({**body})
        return {key_of(manifest): manifest}

    @kopf.on.event(*_PIPES, registry=registry)
    async def changed(event: kopf.RawEvent, **_: Any) -> None:
        raw: Manifest = {**event["object"]}
        (operator.pipes.ended if event["type"] == "DELETED" else operator.pipes.watched)(raw)

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        await parts.aclose()

    return registry


class _ForEver:
    """Delays in seconds without an end: an API server that is away for an hour must not end this process."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.5, 1.0, 2.0, 4.0), itertools.repeat(8.0))


def kopf_settings() -> kopf.OperatorSettings:
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


def quiet() -> None:
    """kopf logs at INFO what is of no interest where it only reads, and warns of a start that a signal ends."""
    logging.getLogger("kopf").setLevel(logging.WARNING)
    for name in ("kopf.activities.startup", "kopf._core.reactor.running"):
        logging.getLogger(name).setLevel(logging.ERROR)
