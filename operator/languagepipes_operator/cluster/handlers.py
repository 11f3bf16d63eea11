"""kopf feeds the events of LanguagePipes, and nothing else of it is used: no finalizers, no annotations, no peering."""

from __future__ import annotations

import logging
from typing import Any, cast

import kopf
from languagepipes_api.names import API_GROUP, API_VERSION

from languagepipes_operator.cluster.informer import SILENCE_SECONDS, key_of
from languagepipes_operator.cluster.kinds import PIPE
from languagepipes_operator.cluster.kube import Kube
from languagepipes_operator.cluster.pipes import Pipes


def registry_of(pipes: Pipes, kube: Kube) -> kopf.OperatorRegistry:
    """The handlers, as values of one operator: kopf's default registry is the whole process's."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        """As our own client logs in. Called again whenever the API server says 401, so a new token is found then."""
        return await connection_of(kube)

    @kopf.on.event(API_GROUP, API_VERSION, PIPE.plural, registry=registry)
    async def seen(event: kopf.RawEvent, **_: Any) -> None:
        body = cast("dict[str, Any]", event["object"])
        raw = {**body, "metadata": dict(body["metadata"])}
        if event["type"] == "DELETED":
            pipes.gone(key_of(raw), raw["metadata"]["uid"])
        else:
            pipes.seen(raw)

    return registry


def settings_of() -> kopf.OperatorSettings:
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
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 60
    settings.networking.error_backoffs = (0.5, 1, 2, 4, 8, 8, 8, 8)
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
