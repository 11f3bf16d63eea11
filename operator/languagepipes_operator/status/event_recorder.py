"""Records Events about pipes, and loses none: an Event that cannot be created now is created at the next reconcile.

Events follow from the last status that was recorded, not from the status that the API server has: a lost answer, or a
Lease that was lost just then, may hide that a status was written. So some Events may come twice. This module does not
know which turns are worth an Event: that is in `events`.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from languagepipes_operator.kube.client import Kube
from languagepipes_operator.kube.errors import KubeError, Unavailable
from languagepipes_operator.kube.kinds import EVENT, PIPE, Manifest
from languagepipes_operator.status.events import Event, events_of

COMPONENT = "languagepipes-operator"

log = logging.getLogger(__name__)


class EventRecorder:
    """identity: of this process, among the operator's replicas. Remembers one status for each pipe, by UID."""

    def __init__(self, kube: Kube, identity: str) -> None:
        self._kube = kube
        self._identity = identity
        self._recorded: dict[str, Mapping[str, Any]] = {}
        self._waiting: dict[str, deque[Event]] = defaultdict(deque)

    def observe(self, raw: Manifest) -> None:
        """Call before a status is written. Of a pipe that is new to this process, the status that it has counts as
        recorded, by the operator process that wrote it.
        """
        self._recorded.setdefault(raw["metadata"]["uid"], raw.get("status") or {})

    async def record(self, raw: Manifest, status: Mapping[str, Any]) -> None:
        """Create an Event for each change since the status that was recorded last. Raises Unavailable and NotLeading:
        call it again then.
        """
        uid = raw["metadata"]["uid"]
        waiting = self._waiting[uid]
        waiting += events_of(self._recorded[uid], status)
        self._recorded[uid] = status
        while waiting:
            await self._create(raw["metadata"], waiting[0])
            waiting.popleft()
        del self._waiting[uid]

    def forget(self, uid: str) -> None:
        self._recorded.pop(uid, None)
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
