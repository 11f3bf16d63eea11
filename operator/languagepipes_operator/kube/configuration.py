"""Where the API server is and who asks it: kubernetes.aio reads it; our own client and kopf both connect with it."""

from __future__ import annotations

import os
import socket
from typing import Any

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject

from languagepipes_operator.kube.errors import ConfigurationError


async def load_configuration(context: str | None = None) -> Configuration:
    """$KUBECONFIG where it is set, else the pod's service account, else ~/.kube/config. context: of the kubeconfig.

    Tokens of service accounts (each minute) and of exec plugins are read anew by the configuration itself, whenever it
    is asked for one. Raises ConfigurationError.
    """
    configuration = Configuration()
    named = os.environ.get("KUBECONFIG")
    try:
        if context is None and not named and os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            await config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=named or None, context=context, client_configuration=configuration, persist_config=False
            )
    except (config.ConfigException, OSError, ValueError) as error:
        raise ConfigurationError(
            f"no way to the API server: {error}. In a pod, mount a service account's token; elsewhere set KUBECONFIG"
        ) from error
    return configuration


def open_session(configuration: Configuration) -> aiohttp.ClientSession:
    """A pool of connections to the API server whose requests carry the credentials as they are then.

    Raises ConfigurationError for certificates that cannot be read.
    """
    try:
        tls = RESTClientObject(configuration).ssl_context
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the certificates for {configuration.host} cannot be read: {error}") from error

    async def authorize(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        token = await configuration.get_api_key_with_prefix("BearerToken")
        if token:
            request.headers["Authorization"] = token
        return await send(request)

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=tls, socket_factory=_socket),
        middlewares=(authorize,),
        proxy=configuration.proxy,
        trust_env=True,
        read_bufsize=2**20,
    )


def _socket(address: Any) -> socket.socket:
    """With keep-alive, so that a peer that vanished is noticed in 25 s even where nothing is ever sent."""
    family, kind, protocol = address[:3]
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return made
