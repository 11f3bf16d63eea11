"""Events about pipes, none of them lost: what could not be told now is told at the pipe's next look.

An answer that got lost may hide a status that was written, and so may a Lease that was lost just then: Events follow
from the last status that was told of, and not from the one that the API server has. Some may come twice.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from languagepipes_operator.kube.client import Kube
from languagepipes_operator.kube.errors import KubeError, Unavailable
from languagepipes_operator.kube.kinds import EVENT, PIPE
from languagepipes_operator.observe.snapshot import Manifest
from languagepipes_operator.status.events import Event, events_of

COMPONENT = "languagepipes-operator"

log = logging.getLogger(__name__)


class EventRecorder:
    """identity: of this replica. Remembers one status a pipe, by UID."""

    def __init__(self, kube: Kube, identity: str) -> None:
        self._kube = kube
        self._identity = identity
        self._told: dict[str, Mapping[str, Any]] = {}
        self._waiting: dict[str, deque[Event]] = defaultdict(deque)

    def met(self, raw: Manifest) -> None:
        """Before its status is written: one that is met for the first time was told of by whoever acted before."""
        self._told.setdefault(raw["metadata"]["uid"], raw.get("status") or {})

    async def tell(self, raw: Manifest, status: Mapping[str, Any]) -> None:
        """Of each turn since the status that was told last. Raises Unavailable and NotLeading, to be called again."""
        uid = raw["metadata"]["uid"]
        waiting = self._waiting[uid]
        waiting += events_of(self._told[uid], status)
        self._told[uid] = status
        while waiting:
            await self._create(raw["metadata"], waiting[0])
            waiting.popleft()
        del self._waiting[uid]

    def forget(self, uid: str) -> None:
        self._told.pop(uid, None)
        self._waiting.pop(uid, None)

    async def _create(self, metadata: Mapping[str, Any], event: Event) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": PIPE.api_version,
                "kind": PIPE.name,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message,
            "action": event.reason,
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._identity,
        }
        try:
            await self._kube.create(body, EVENT)
        except Unavailable:
            raise
        except KubeError as error:
            log.warning("an Event of %s/%s is lost: %s", metadata["namespace"], metadata["name"], error)
