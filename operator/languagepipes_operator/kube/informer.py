"""What the API server holds, in memory: a list and then a watch of one kind, selected by label, kept up to date.

Reading a cache costs nothing, so a reconcile asks the API server nothing. What is cached may be a moment old: writers
guard themselves with preconditions and creates. Knows nothing of what the objects are for.

After etcd was restored to an older revision, a watch from a version that is still to come is silent and well: the API
server sends what is newer than that, so nothing, for as long as its revisions are below it. So a watch is never resumed
before a list of one object, which is as new as etcd itself, has told that the version has been reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from languagepipes_operator.kube.client import Kube
from languagepipes_operator.kube.errors import Expired, Forbidden, KubeError, NotFound, RevisionWentBack
from languagepipes_operator.kube.kinds import Kind, Manifest
from languagepipes_operator.kube.retries import back_off
from languagepipes_operator.metrics import Metrics

# Bookmarks come about once a minute: more silence than that is a watch that died without a word.
SILENCE_SECONDS = 75.0
# A watch that lasted for so long was no failure, whatever ended it.
_LASTING_SECONDS = 5.0
# Of a list's objects, how many are taken in before the event loop goes on with something else.
_AT_ONCE = 50
log = logging.getLogger(__name__)


class ObjectKey(NamedTuple):
    """namespace: "" for kinds that have none."""

    namespace: str
    name: str


Trim = Callable[[Manifest], Manifest]
Index = Callable[[Manifest], Iterable[ObjectKey]]
Listener = Callable[[Manifest], None]


def trimmed(item: Manifest) -> Manifest:
    """Without what nobody here reads and what is most of many objects."""
    item["metadata"].pop("managedFields", None)
    return item


_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def trimmed_pod(item: Manifest) -> Manifest:
    """Where it runs, what it asks for, how it is; not how it was described."""
    trimmed(item)
    spec = item.get("spec", {})
    item["spec"] = {
        "nodeName": spec.get("nodeName", ""),
        "containers": [_trimmed_container(each) for each in spec.get("containers", ())],
        # Injected sidecars, a runtime class's overhead and resources of the pod as a whole are asked of its node too.
        **(
            {"initContainers": list(map(_trimmed_container, spec["initContainers"]))}
            if "initContainers" in spec
            else {}
        ),
        # Which nodes it is bound to is told where none is such.
        **{key: spec[key] for key in ("overhead", "resources", "nodeSelector") if key in spec},
        **({"affinity": {"nodeAffinity": {_REQUIRED: bound}}} if (bound := _required_affinity(spec)) else {}),
    }
    return item


def _required_affinity(spec: Manifest) -> Any:
    return ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(_REQUIRED)


def _trimmed_container(container: Manifest) -> Manifest:
    return {key: container[key] for key in ("name", "image", "resources", "restartPolicy") if key in container}


def key_of(item: Manifest) -> ObjectKey:
    metadata = item["metadata"]
    return ObjectKey(metadata.get("namespace", ""), metadata["name"])


class Informer:
    """One kind, in one namespace or in all, behind one label selector. `run` keeps it; everything else reads."""

    def __init__(
        self,
        kube: Kube,
        kind: Kind,
        metrics: Metrics,
        *,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
        trim: Trim = trimmed,
        index: Index = lambda item: (),
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self.kind = kind
        self.namespace = namespace
        self.listeners: list[Listener] = []
        self.trouble: KubeError | None = None
        self._kube = kube
        self._metrics = metrics
        self._labels = labels
        self._fields = fields
        self._trim = trim
        self._index = index
        self._silence = silence_seconds
        self._items: dict[ObjectKey, Manifest] = {}
        self._by_index: dict[ObjectKey, set[ObjectKey]] = defaultdict(set)
        self._version = ""
        self._reached = 0
        # Written by us since the last list began.
        self._remembered: set[ObjectKey] = set()
        self._synced = asyncio.Event()

    @property
    def synced(self) -> bool:
        """Whether it was listed once. From then on it is up to date, but for what a broken watch has still to say."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        await self._synced.wait()

    def get(self, key: ObjectKey) -> Manifest | None:
        """Not to be changed by readers."""
        return self._items.get(key)

    def all(self) -> Iterable[Manifest]:
        return self._items.values()

    def of(self, index: ObjectKey) -> list[Manifest]:
        """Those that the index function put under that key."""
        return [self._items[key] for key in self._by_index.get(index, ())]

    def remember(self, item: Manifest) -> None:
        """What a write of ours gave back, until the watch says the same: so that no reconcile sees less than it did.

        `item` becomes the cache's.
        """
        known = self._items.get(key_of(item))
        if known is not None and _version(known) >= _version(item):
            return
        self._remembered.add(key_of(item))
        self._put(self._trim(item))

    def drop(self, key: ObjectKey, uid: str) -> None:
        """Forget what we deleted, unless there is another of that name already."""
        known = self._items.get(key)
        if known is not None and known["metadata"].get("uid") == uid:
            self._remembered.discard(key)
            self._remove(key)

    async def run(self) -> None:
        """Until cancelled, or RevisionWentBack. Errors are kept in `trouble` and tried again with back-off, for ever.

        So is a watch that ends, or is refused as too old, as soon as it was begun: a proxy or a server that does so
        must not be asked as fast as it answers.
        """
        failures = 0
        while True:
            watched_from, failed = float("inf"), False
            try:
                if not self._version:
                    await self._list()
                else:
                    await self._check_revision()
                watched_from = time.monotonic()
                await self._watch()
                self._restarted("ended")
            except Expired:
                self._restarted("expired")
                self._version = ""
            except TimeoutError:
                self._restarted("silent")
            except KubeError as error:
                self._restarted("failed")
                if self.trouble is None or type(self.trouble) is not type(error):
                    log.warning("watching %s fails, tried again with back-off: %s", self.kind, error)
                self.trouble, failed = error, True
                if isinstance(error, Forbidden | NotFound):
                    self._version = ""
            lasted = time.monotonic() - watched_from >= _LASTING_SECONDS
            failures = 0 if lasted else failures
            if failed or not lasted:
                await asyncio.sleep(back_off(failures, first=0.5, longest=15.0))
                failures += 1

    async def _list(self) -> None:
        self._remembered.clear()
        listed = await self._kube.list(
            self.kind, namespace=self.namespace, labels=self._labels, fields=self._fields, trim=self._trim
        )
        self._reach(listed.resource_version)
        # What we wrote meanwhile is newer than the list, which knows nothing of it.
        gone = self._items.keys() - {key_of(item) for item in listed.items} - self._remembered
        for key in gone:
            self._tell(self._remove(key))
        for number, item in enumerate(listed.items):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)  # of thousands of nodes, each is weighed by a listener: others have their turn
            known = self._items.get(key_of(item))
            if known is not None and key_of(item) in self._remembered and _version(known) > _version(item):
                continue
            if known is None or known["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
                self._put(item)
                self._tell(item)
        self._version = listed.resource_version
        self._remembered.clear()
        self._synced.set()

    async def _check_revision(self) -> None:
        """Raises RevisionWentBack. A list without a version is read as etcd has it, whichever server answers
        (https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions).
        """
        self._reach(
            await self._kube.revision(self.kind, namespace=self.namespace, labels=self._labels, fields=self._fields)
        )

    def _reach(self, version: str) -> None:
        """A list is at this resource version. Raises RevisionWentBack if it had been at a later one."""
        if int(version) < self._reached:
            raise RevisionWentBack(
                f"the API server is at resource version {version}, and had been at {self._reached} ({self.kind}): etcd "
                "was restored from a backup. The operator ends, to read everything anew when it is started again"
            )
        self._reached = int(version)

    async def _watch(self) -> None:
        events = self._kube.watch(
            self.kind,
            self._version,
            namespace=self.namespace,
            labels=self._labels,
            fields=self._fields,
            silence_seconds=self._silence,
        )
        # Closed at once, not by the collector: it holds a connection.
        async with contextlib.aclosing(events):
            async for event in events:
                self._version, self.trouble = event.object["metadata"]["resourceVersion"], None
                self._reached = max(self._reached, int(self._version))
                if event.type == "BOOKMARK":
                    continue
                if event.type == "DELETED":
                    self.drop(key_of(event.object), event.object["metadata"].get("uid", ""))
                    self._tell(event.object)
                    continue
                item = self._trim(event.object)
                known = self._items.get(key_of(item))
                # A write of ours may have brought a newer one already.
                if known is None or _version(known) < _version(item):
                    self._put(item)
                # Told even if a write of ours brought it first: others may have changed it in between.
                self._tell(item)

    def _put(self, item: Manifest) -> None:
        key = key_of(item)
        known = self._items.get(key)
        if known is not None:
            self._unindex(key, known)
        self._items[key] = item
        for index in self._index(item):
            self._by_index[index].add(key)

    def _remove(self, key: ObjectKey) -> Manifest:
        item = self._items.pop(key)
        self._unindex(key, item)
        return item

    def _unindex(self, key: ObjectKey, item: Manifest) -> None:
        for index in self._index(item):
            held = self._by_index[index]
            held.discard(key)
            if not held:
                del self._by_index[index]

    def _tell(self, item: Manifest) -> None:
        for listener in self.listeners:
            listener(item)

    def _restarted(self, reason: str) -> None:
        self._metrics.watch_restarts.labels(str(self.kind), reason).inc()


def _version(item: Manifest) -> int:
    """Resource versions of one kind are comparable integers
    (https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions, since 1.35).
    """
    return int(item["metadata"].get("resourceVersion") or 0)
