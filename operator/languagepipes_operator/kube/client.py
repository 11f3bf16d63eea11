"""The API server, as manifests in and manifests out: a thin client by path, over kubernetes.aio's configuration.

Every request is counted, and tried again where trying again can help. No typed models; no caches (see `informer`).
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from kubernetes.aio.client import Configuration

from languagepipes_operator.kube.configuration import load_configuration, open_session
from languagepipes_operator.kube.errors import NotFound, NotLeading, Unavailable, error_of
from languagepipes_operator.kube.kinds import Kind, Manifest
from languagepipes_operator.kube.retries import ATTEMPTS, with_retries
from languagepipes_operator.metrics import Metrics

FIELD_MANAGER = "languagepipes"
_REQUEST = aiohttp.ClientTimeout(total=30, sock_connect=5)
_PAGE = 500
# Verbs of writes that only the leader may do; the Lease itself is written with "update".
_GUARDED = ("create", "apply", "patch", "delete")

log = logging.getLogger(__name__)


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

    async def revision(self, kind: Kind, *, namespace: str | None = None, labels: str = "", fields: str = "") -> str:
        """The resource version that a list of that kind has now; at most one object is read for it."""
        query = {"limit": "1"} | _selectors(labels, fields)
        page = await self._call("list", kind, "GET", kind.path(namespace), query=query)
        return str(page["metadata"]["resourceVersion"])

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
        attempts: int = ATTEMPTS,
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

        return await with_retries(once, attempts)

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
    async with open_session(configuration) as session:
        yield Kube(session, configuration, metrics)


def _selectors(labels: str, fields: str) -> dict[str, str]:
    return {name: value for name, value in (("labelSelector", labels), ("fieldSelector", fields)) if value}


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
