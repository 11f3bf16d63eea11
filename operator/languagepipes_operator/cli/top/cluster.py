"""Reads pipes, their pods and their pods' metrics, all by way of the API server: who may `get` pods' `proxy` there can
look from anywhere, and no port is forwarded.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import Configuration
from languagepipes_api.names import API_GROUP, API_VERSION, LABEL_MANAGED_BY, LABEL_PIPE, MANAGED_BY, TELEMETRY_PORT

from languagepipes_operator.cli.top.readings import Member, Reading, samples_of
from languagepipes_operator.kube.configuration import load_configuration, open_session
from languagepipes_operator.kube.errors import ConfigurationError
from languagepipes_operator.kube.kinds import Manifest

_TIMEOUT = aiohttp.ClientTimeout(total=10, sock_connect=5)
_PROXY = "/proxy/"
# Pods whose metrics are read at a time.
_AT_A_TIME = 16


class ClusterError(Exception):
    """Told to the user in one line: what was asked for, and the remedy."""


class Cluster:
    """An async context. context: of the kubeconfig; None is the current one."""

    def __init__(self, context: str | None = None) -> None:
        self._context = context

    async def __aenter__(self) -> Cluster:
        """Raises ClusterError where there is no usable kubeconfig."""
        try:
            self._configuration: Configuration = await load_configuration(self._context)
            self._session = open_session(self._configuration)
        except ConfigurationError as error:
            raise ClusterError(str(error)) from error
        self._turns = asyncio.Semaphore(_AT_A_TIME)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    def namespace(self) -> str:
        """That of the kubeconfig's context; `default` where it names none, or there is no kubeconfig (in a pod)."""
        try:
            contexts, current = config.list_kube_config_contexts()  # type: ignore[no-untyped-call]
        except (config.ConfigException, OSError):
            return "default"
        chosen = next((each for each in contexts if each["name"] == self._context), current)
        return str(chosen["context"].get("namespace") or "default")

    async def pipes(self, namespace: str | None) -> list[Manifest]:
        """All of a namespace, or of the cluster. Raises ClusterError."""
        found: list[Manifest] = (await self._get(f"{_of(namespace)}/languagepipes"))["items"]
        return found

    async def pipe(self, namespace: str, name: str) -> Manifest:
        """Raises ClusterError, also where there is none of that name."""
        return await self._get(f"{_of(namespace)}/languagepipes/{name}")

    async def read(self, pipes: Sequence[Manifest], *, roles: Sequence[str] = ()) -> Reading:
        """These pipes' pods, of these roles or of all, with the metrics of those that run. Raises ClusterError; metrics
        of a pod that cannot be read are no error, but what forbids reading any is.
        """
        namespaces = {str(pipe["metadata"]["namespace"]) for pipe in pipes}
        names = {(str(pipe["metadata"]["namespace"]), str(pipe["metadata"]["name"])) for pipe in pipes}
        selector = f"{LABEL_MANAGED_BY}={MANAGED_BY},{LABEL_PIPE}"
        if len(pipes) == 1:
            selector = f"{LABEL_PIPE}={pipes[0]['metadata']['name']}"
        lists = await asyncio.gather(
            *(self._get(f"/api/v1/namespaces/{each}/pods", labelSelector=selector) for each in sorted(namespaces))
        )
        pods = [Member(pod, time.monotonic()) for found in lists for pod in found["items"]]
        wanted = [pod for pod in pods if pod.pipe in names and (not roles or pod.role in roles)]
        members = await asyncio.gather(*map(self._with_metrics, wanted))
        return Reading(tuple(pipes), tuple(members))

    async def _with_metrics(self, member: Member) -> Member:
        metadata, status = member.pod["metadata"], member.pod.get("status", {})
        if status.get("phase") != "Running" or not status.get("podIP"):
            return member
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}:{TELEMETRY_PORT}{_PROXY}metrics"
        async with self._turns:
            at = time.monotonic()
            try:
                return Member(member.pod, at, samples_of(await self._text(path)))
            except _NotThereError as error:
                return Member(member.pod, at, why=str(error))
            except ValueError:
                return Member(member.pod, at, why="its page of metrics cannot be read")

    async def _get(self, path: str, **query: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self._text(path, **query))
        return found

    async def _text(self, path: str, **query: str) -> str:
        host = self._configuration.host
        try:
            async with self._session.get(f"{host}{path}", params=query, timeout=_TIMEOUT) as response:
                text = await response.text()
                if response.status == 200:
                    return text
        except (aiohttp.ClientError, TimeoutError) as error:
            if _PROXY in path and isinstance(error, TimeoutError):
                raise _NotThereError(f"no answer within {_TIMEOUT.total:g} s") from error
            raise ClusterError(f"{host} does not answer: {str(error) or type(error).__name__}") from error
        said = _message(text)
        if response.status == 403:
            raise ClusterError(f"not permitted: {said}. `languagepipes top` reads languagepipes, pods and pods/proxy")
        if response.status == 401:
            raise ClusterError(f"{host} does not know you: {said}; log in again, or choose another context")
        if response.status == 404 and path.endswith("/languagepipes"):
            raise ClusterError(f"{host} has no LanguagePipes: install the chart")
        if _PROXY in path:
            raise _NotThereError(f"{response.status} {said}"[:200])
        raise ClusterError(f"{path}: {response.status} {said}")


class _NotThereError(Exception):
    """One pod's page."""


def _of(namespace: str | None) -> str:
    group = f"/apis/{API_GROUP}/{API_VERSION}"
    return group if namespace is None else f"{group}/namespaces/{namespace}"


def _message(text: str) -> str:
    """Of a metav1.Status; of anything else, its beginning."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()[:200]
