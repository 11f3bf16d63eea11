"""The API server, as manifests in and manifests out: a thin client over kubernetes_asyncio's configuration.

Every request is counted, and tried again where trying again can help. No typed models; no caches (see `informer`).

KubeError                  the API server said no, or nothing
├── NotFound               404
├── Conflict               409: changed meanwhile, or another UID
│   └── AlreadyExists      409 on create
├── Expired                410: the resource version is too old; list again
├── Invalid                400, 413, 415, 422: the object itself is refused
├── Forbidden              403: names what may not be done
└── Unavailable            5xx, or no answer at all
    ├── Throttled          429
    ├── Broken             500: an admission webhook that is down, or an object that the API server chokes on
    └── Unauthorized       401: the token is not good, or no longer; the next try reads it anew
NotLeading                 a write was asked for while another operator may act
ConfigurationError         there is no usable kubeconfig or service account
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from kubernetes_asyncio import config as kube_config
from kubernetes_asyncio.client import Configuration

from languagepipes_operator.kube.kinds import Kind, Manifest
from languagepipes_operator.metrics import Metrics

FIELD_MANAGER = "languagepipes"
_ATTEMPTS = 5
_FIRST_DELAY_SECONDS = 0.25
_LONGEST_DELAY_SECONDS = 8.0
# A server that asks for more than this is left alone by the queue's back-off instead.
_LONGEST_RETRY_AFTER_SECONDS = 30.0
_REQUEST = aiohttp.ClientTimeout(total=30, sock_connect=5)
_PAGE = 500
# Verbs of writes that only the leader may do; the Lease itself is written with "update".
_GUARDED = ("create", "apply", "patch", "delete")

log = logging.getLogger(__name__)


class ConfigurationError(Exception):
    """Says where was looked, and the remedy."""


class KubeError(Exception):
    """code: the HTTP status, or 0 without an answer. reason: as metav1.Status spells it. causes: its details."""

    def __init__(self, message: str, *, code: int = 0, reason: str = "", retry_after_seconds: float | None = None):
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class NotFound(KubeError):
    """There is no such object, or no such kind."""


class Conflict(KubeError):
    """The object changed meanwhile, or is another one under the same name."""


class AlreadyExists(Conflict):
    """The name is taken."""


class Expired(KubeError):
    """The resource version is too old to continue from."""


class Invalid(KubeError):
    """The object is refused as it stands; trying again changes nothing."""


class Forbidden(KubeError):
    """RBAC (or admission) says no."""


class Unavailable(KubeError):
    """No answer, or one that says that the API server is not well."""


class Throttled(Unavailable):
    """Too many requests."""


class Broken(Unavailable):
    """The API server answers, and cannot do this one thing: it may pass, and it may stay for ever."""


class Unauthorized(Unavailable):
    """The API server does not know who asks. Tokens are turned over by the kubelet, so this may pass."""


class NotLeading(Exception):
    """Nothing was sent."""


@dataclass(frozen=True)
class Listed:
    """A whole list and the version that a watch of it continues from."""

    items: tuple[Manifest, ...]
    resource_version: str


@dataclass(frozen=True)
class WatchEvent:
    """type: ADDED, MODIFIED, DELETED or BOOKMARK."""

    type: str
    object: Manifest


async def load_configuration() -> Configuration:
    """$KUBECONFIG where it is set, else the pod's service account, else ~/.kube/config.

    A service account's token is read anew every minute; an exec plugin's is refreshed by `Kube`. Raises
    ConfigurationError.
    """
    configuration = Configuration()
    named = os.environ.get("KUBECONFIG")
    try:
        if not named and os.environ.get("KUBERNETES_SERVICE_HOST"):
            kube_config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            await kube_config.load_kube_config(
                config_file=named or None, client_configuration=configuration, persist_config=False
            )
    except (kube_config.ConfigException, OSError, ValueError) as error:
        raise ConfigurationError(
            f"no way to the API server: {error}. In a pod, mount a service account's token; elsewhere set KUBECONFIG"
        ) from error
    return configuration


class Kube:
    """One API server. Make it with `connect`."""

    def __init__(self, session: aiohttp.ClientSession, configuration: Configuration, metrics: Metrics) -> None:
        self._session = session
        self._configuration = configuration
        self._metrics = metrics
        self._warned: set[str] = set()
        self._may_write: Callable[[], bool] = lambda: True

    @property
    def host(self) -> str:
        return str(self._configuration.host)

    @property
    def configuration(self) -> Configuration:
        return self._configuration

    async def get(self, kind: Kind, name: str, *, namespace: str | None = None) -> Manifest:
        return await self._call("get", kind, "GET", kind.path(namespace, name))

    async def get_path(self, path: str) -> Manifest:
        """Something that is no object: /version, /openapi/…"""
        return await self._call("get", path.strip("/").split("/")[0], "GET", path)

    async def list(
        self,
        kind: Kind,
        *,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
        trim: Callable[[Manifest], Manifest] = lambda item: item,
    ) -> Listed:
        """In pages, each trimmed before the next is asked for. Raises Expired if the pages took too long."""
        items: list[Manifest] = []
        query = {"limit": str(_PAGE)} | _selectors(labels, fields)
        while True:
            page = await self._call("list", kind, "GET", kind.path(namespace), query=query)
            # Items of a list do not say what they are.
            what = {"apiVersion": kind.api_version, "kind": kind.name}
            items += (trim(what | item) for item in page["items"])
            following = page["metadata"].get("continue")
            if not following:
                return Listed(tuple(items), page["metadata"]["resourceVersion"])
            query["continue"] = following

    async def watch(
        self,
        kind: Kind,
        resource_version: str,
        *,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
        silence_seconds: float,
    ) -> AsyncGenerator[WatchEvent, None]:
        """Ends when the server ends it. Raises TimeoutError after that long without a byte, Expired, KubeError."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(random.randint(240, 360)),  # noqa: S311
            **_selectors(labels, fields),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=silence_seconds)
        async with self._send("watch", kind, "GET", kind.path(namespace), query=query, timeout=timeout) as response:
            await self._raise(response, f"watch {kind}")
            rest = bytearray()
            async for piece in response.content.iter_any():
                rest += piece
                *lines, last = rest.split(b"\n")
                rest = bytearray(last)
                for line in lines:
                    if line:
                        yield self._event(json.loads(line), kind)

    async def create(self, manifest: Manifest, kind: Kind) -> Manifest:
        """Raises AlreadyExists where the name is taken, also where an earlier try of ours took it unheard."""
        namespace = manifest["metadata"].get("namespace")
        return await self._call(
            "create", kind, "POST", kind.path(namespace), body=manifest, query={"fieldManager": FIELD_MANAGER}
        )

    async def apply(self, manifest: Manifest, kind: Kind, *, subresource: str = "") -> Manifest:
        """Server-side apply: what the manifest names is ours from now on, whoever had it.

        With metadata.uid in it, Conflict for an object of another UID.
        """
        metadata = manifest["metadata"]
        path = kind.path(metadata.get("namespace"), metadata["name"]) + (f"/{subresource}" if subresource else "")
        return await self._call(
            "apply",
            kind,
            "PATCH",
            path,
            body=manifest,
            query={"fieldManager": FIELD_MANAGER, "force": "true"},
            content_type="application/apply-patch+yaml",
        )

    async def patch(
        self, kind: Kind, name: str, operations: Sequence[Mapping[str, Any]], *, namespace: str | None = None
    ) -> Manifest:
        """A JSON patch (RFC 6902). With a replacement of metadata.resourceVersion in it, Conflict for another one."""
        return await self._call(
            "patch",
            kind,
            "PATCH",
            kind.path(namespace, name),
            body=list(operations),
            query={"fieldManager": FIELD_MANAGER},
            content_type="application/json-patch+json",
        )

    async def replace(self, manifest: Manifest, kind: Kind) -> Manifest:
        """The whole object; Conflict unless its resourceVersion is still the newest."""
        metadata = manifest["metadata"]
        path = kind.path(metadata.get("namespace"), metadata["name"])
        return await self._call(
            "update", kind, "PUT", path, body=manifest, query={"fieldManager": FIELD_MANAGER}, attempts=1
        )

    async def delete(
        self, kind: Kind, name: str, *, namespace: str | None = None, uid: str = "", resource_version: str = ""
    ) -> None:
        """Only that object and only as it was seen, if uid and resource_version are given; what is gone is fine.

        Raises Conflict.
        """
        preconditions = {key: value for key, value in (("uid", uid), ("resourceVersion", resource_version)) if value}
        body: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if preconditions:
            body["preconditions"] = preconditions
        try:
            await self._call("delete", kind, "DELETE", kind.path(namespace, name), body=body)
        except NotFound:
            return

    def guarded(self, may_write: Callable[[], bool]) -> Kube:
        """The same API server; creates, applies and deletes raise NotLeading unless `may_write` says so just then."""
        kube = Kube(self._session, self._configuration, self._metrics)
        kube._may_write = may_write
        return kube

    def _check_guard(self) -> None:
        if not self._may_write():
            raise NotLeading("the lease is not held: nothing is written")

    async def _call(
        self,
        verb: str,
        kind: Kind | str,
        method: str,
        path: str,
        *,
        body: Manifest | Sequence[Mapping[str, Any]] | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        attempts: int = _ATTEMPTS,
    ) -> Manifest:
        async def once() -> Manifest:
            # Before each try: retries may go on for longer than the lease.
            if verb in _GUARDED:
                self._check_guard()
            async with self._send(
                verb, kind, method, path, body=body, query=query, content_type=content_type
            ) as response:
                await self._raise(response, f"{verb} {kind} {path}")
                answer: Manifest = await response.json(content_type=None)
                return answer

        return await _with_retries(once, attempts)

    @asynccontextmanager
    async def _send(
        self,
        verb: str,
        kind: Kind | str,
        method: str,
        path: str,
        *,
        body: Manifest | Sequence[Mapping[str, Any]] | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        timeout: aiohttp.ClientTimeout = _REQUEST,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        token = await self._configuration.get_api_key_with_prefix("BearerToken")
        if token:
            headers["Authorization"] = token
        count = self._metrics.api_calls
        data = None if body is None else json.dumps(body).encode()
        answered = False
        try:
            async with self._session.request(
                method, self.host.rstrip("/") + path, params=query, data=data, headers=headers, timeout=timeout
            ) as response:
                answered = True
                count.labels(verb, str(kind), str(response.status)).inc()
                self._warn(response)
                yield response
        except TimeoutError:
            # A silent watch is not an API server without an answer: the caller tells them apart.
            if answered and timeout is not _REQUEST:
                raise
            if not answered:
                count.labels(verb, str(kind), "0").inc()
            raise Unavailable(f"{self.host} does not answer: {verb} {path} timed out") from None
        except (aiohttp.ClientError, OSError) as error:
            if not answered:
                count.labels(verb, str(kind), "0").inc()
            raise Unavailable(f"{self.host} does not answer: {verb} {path}: {_text(error)}") from error

    async def _raise(self, response: aiohttp.ClientResponse, what: str) -> None:
        if response.status < 400:
            return
        try:
            status = await response.json(content_type=None)
        except (ValueError, aiohttp.ClientError):
            status = {}
        if not isinstance(status, dict):
            status = {}
        raise error_of(response.status, status, what=what, retry_after=response.headers.get("Retry-After"))

    def _event(self, data: Manifest, kind: Kind) -> WatchEvent:
        if data["type"] == "ERROR":
            status = data["object"]
            raise error_of(int(status.get("code") or 500), status, what=f"watch {kind}")
        return WatchEvent(data["type"], data["object"])

    def _warn(self, response: aiohttp.ClientResponse) -> None:
        """Say each of the API server's warnings (RFC 7234, 5.5) once."""
        for warning in response.headers.getall("Warning", ()):
            if warning not in self._warned and len(self._warned) < 1000:
                self._warned.add(warning)
                log.warning("the API server warns: %s", warning)


@asynccontextmanager
async def connect(metrics: Metrics, configuration: Configuration | None = None) -> AsyncIterator[Kube]:
    """Opens no connection yet. Raises ConfigurationError."""
    configuration = configuration or await load_configuration()
    connector = aiohttp.TCPConnector(limit=0, ssl=_tls(configuration), socket_factory=_socket)
    async with aiohttp.ClientSession(connector=connector, trust_env=True, read_bufsize=2**20) as session:
        yield Kube(session, configuration, metrics)


def error_of(code: int, status: Mapping[str, Any], *, what: str, retry_after: str | None = None) -> KubeError:
    """The exception for an answer's status code and metav1.Status."""
    reason = str(status.get("reason") or "")
    text = f"{what}: {status.get('message') or f'HTTP {code}'}"
    kinds: dict[int, type[KubeError]] = {
        400: Invalid,
        401: Unauthorized,
        403: Forbidden,
        404: NotFound,
        409: AlreadyExists if reason == "AlreadyExists" else Conflict,
        410: Expired,
        413: Invalid,
        415: Invalid,
        422: Invalid,
        429: Throttled,
        500: Broken,
    }
    kind = kinds.get(code, Unavailable if code >= 500 else KubeError)
    return kind(text, code=code, reason=reason, retry_after_seconds=_seconds(retry_after, status))


def back_off(attempt: int, *, first: float, longest: float) -> float:
    """Seconds before try number `attempt` + 1 (the first is 0): doubling, with up to half of it left to chance."""
    whole = min(longest, first * 2.0 ** min(attempt, 32))
    return whole * random.uniform(0.5, 1.0)  # noqa: S311


async def _with_retries(once: Callable[[], Awaitable[Manifest]], attempts: int) -> Manifest:
    for attempt in range(attempts):
        try:
            return await once()
        except Unavailable as error:
            if attempt + 1 == attempts or (error.retry_after_seconds or 0) > _LONGEST_RETRY_AFTER_SECONDS:
                raise
            delay = back_off(attempt, first=_FIRST_DELAY_SECONDS, longest=_LONGEST_DELAY_SECONDS)
            await asyncio.sleep(max(delay, error.retry_after_seconds or 0))
    raise AssertionError("attempts is at least 1")


def _seconds(retry_after: str | None, status: Mapping[str, Any]) -> float | None:
    stated = retry_after or (status.get("details") or {}).get("retryAfterSeconds")
    try:
        return None if stated is None else float(stated)
    except (TypeError, ValueError):
        return None


def _selectors(labels: str, fields: str) -> dict[str, str]:
    return {name: value for name, value in (("labelSelector", labels), ("fieldSelector", fields)) if value}


def _tls(configuration: Configuration) -> ssl.SSLContext | bool:
    if not str(configuration.host).startswith("https"):
        return True
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _socket(address: Any) -> socket.socket:
    """With keep-alive, so that a peer that vanished is noticed in 25 s even where nothing is ever sent."""
    family, kind, protocol = address[:3]
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return made


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
