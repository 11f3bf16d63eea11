"""The informers of everything that pipes are made of, for one namespace, several, or all.

An object is found by its label, and counts as a child only if a pipe owns it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from languagepipes_api.names import API_GROUP, KIND, LABEL_MANAGED_BY, LABEL_PIPE, MANAGED_BY

from languagepipes_operator.kube.client import Kube
from languagepipes_operator.kube.errors import Forbidden, KubeError
from languagepipes_operator.kube.informer import Informer, ObjectKey, key_of, trimmed, trimmed_pod
from languagepipes_operator.kube.kinds import CHILDREN, DEPLOYMENT, NODE, POD, Kind, Manifest
from languagepipes_operator.metrics import Metrics
from languagepipes_operator.observe.cluster_nodes import BOUND, ClusterNodes, Look, PodSums, summed_pod
from languagepipes_operator.observe.drains import drain_taints
from languagepipes_operator.observe.reservations import Reservations
from languagepipes_operator.planning.nodes import Taint

_SYNC_SECONDS = 0.05
_OURS = f"{LABEL_MANAGED_BY}={MANAGED_BY}"


def pipes_of(item: Manifest) -> set[ObjectKey]:
    """The pipes that a change of the object may matter to: the one its label names, and the one that owns it."""
    metadata = item["metadata"]
    namespace = metadata.get("namespace", "")
    found = set()
    label = (metadata.get("labels") or {}).get(LABEL_PIPE)
    if label:
        found.add(ObjectKey(namespace, label))
    for reference in metadata.get("ownerReferences") or ():
        if reference.get("kind") == KIND and str(reference.get("apiVersion", "")).startswith(f"{API_GROUP}/"):
            found.add(ObjectKey(namespace, reference["name"]))
    return found


def _on_node(name: str) -> ObjectKey:
    """The key of a node's pods in the index, which no pipe has: a pipe is in a namespace."""
    return ObjectKey("", name)


def _index_of_pods(item: Manifest) -> set[ObjectKey]:
    """By pipe, and by node."""
    node = item.get("spec", {}).get("nodeName")
    return pipes_of(item) | ({_on_node(node)} if node else set())


def trimmed_node(item: Manifest) -> Manifest:
    """What a planner may ask: names, labels, taints, what can be allocated, whether it is ready."""
    metadata, status = item["metadata"], item.get("status", {})
    return {
        "metadata": {key: metadata[key] for key in ("name", "uid", "resourceVersion", "labels") if key in metadata},
        "spec": {key: value for key, value in item.get("spec", {}).items() if key in ("taints", "unschedulable")},
        "status": {
            "allocatable": status.get("allocatable", {}),
            "conditions": [
                {"type": "Ready", "status": each.get("status")}
                for each in status.get("conditions", ())
                if each.get("type") == "Ready"
            ],
        },
    }


class Caches:
    """Informers by kind and namespace. on_change: called with each pipe that a change may matter to. on_nodes: when
    a node came, went, or offers something else. on_drain: called with a node that is being emptied from now on, or no
    longer.
    """

    def __init__(
        self,
        kube: Kube,
        metrics: Metrics,
        namespaces: Iterable[str],
        on_change: Callable[[ObjectKey], None],
        on_nodes: Callable[[], None] = lambda: None,
        on_drain: Callable[[str], None] = lambda node: None,
    ) -> None:
        places: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._informers = {
            (kind, place): Informer(
                kube,
                kind,
                metrics,
                namespace=place,
                labels=_OURS,
                trim=trimmed_pod if kind is POD else trimmed,
                index=_index_of_pods if kind is POD else pipes_of,
            )
            for kind in (*CHILDREN, POD)
            for place in places
        }
        self._on_change = on_change
        self._cluster_wide = places == (None,)
        for informer in self._informers.values():
            informer.listeners.append(self._report)
        self.reservations = Reservations(
            lambda pipe: self.children(DEPLOYMENT, pipe), lambda pipe: self.children(POD, pipe)
        )
        self._cluster_nodes = ClusterNodes()
        # Pods of others are read where Nodes are. Without leave to do so, the sums are of members alone.
        self._of_all, self._of_members = PodSums(), PodSums()
        self._all_pods = Informer(kube, POD, metrics, fields=BOUND, trim=summed_pod) if self._cluster_wide else None
        if self._all_pods is not None:
            self._all_pods.listeners.append(self._report_any_pod)
            self._informers[POD, None].listeners.append(self._report_member_pod)
        self._nodes = Informer(kube, NODE, metrics, trim=trimmed_node) if self._cluster_wide else None
        self._on_nodes = on_nodes
        self._on_drain = on_drain
        self._reported_nodes: dict[ObjectKey, Manifest] = {}
        # Kept beside the nodes, so that a look at a pipe is no look at every node.
        self._emptied: dict[str, tuple[Taint, ...]] = {}
        if self._nodes is not None:
            self._nodes.listeners.append(self._report_node)

    def _report(self, item: Manifest) -> None:
        for pipe in pipes_of(item):
            self.reservations.changed(pipe)
            self._on_change(pipe)

    def _report_node(self, item: Manifest) -> None:
        """Kubelets write every few minutes although nothing has changed; that is not reported."""
        key, now = key_of(item), self._nodes.get(key_of(item)) if self._nodes is not None else None
        self._cluster_nodes.put(key.name, now)
        if now is None:
            self._reported_nodes.pop(key, None)
        else:
            plain = {"labels": now["metadata"].get("labels"), "spec": now["spec"], "status": now["status"]}
            if self._reported_nodes.get(key) == plain:
                return
            self._reported_nodes[key] = plain
        self._note_drain(key.name, () if now is None else drain_taints(now))
        self._on_nodes()

    def _note_drain(self, node: str, taints: tuple[Taint, ...]) -> None:
        if taints == self._emptied.get(node, ()):
            return
        # Another value each time: snapshots keep the one that they were taken with.
        rest = {name: found for name, found in self._emptied.items() if name != node}
        self._emptied = {**rest, node: taints} if taints else rest
        self._on_drain(node)

    def _report_any_pod(self, item: Manifest) -> None:
        key = key_of(item)
        if self._all_pods is not None and self._of_all.put(key, self._all_pods.get(key)):
            self._on_nodes()

    def _report_member_pod(self, item: Manifest) -> None:
        key = key_of(item)
        if self._of_members.put(key, self._informers[POD, None].get(key)) and self._may_not_read_all_pods:
            self._on_nodes()

    @property
    def _may_not_read_all_pods(self) -> bool:
        all_pods = self._all_pods
        return all_pods is not None and not all_pods.synced and isinstance(all_pods.trouble, Forbidden)

    def of(self, kind: Kind, namespace: str) -> Informer:
        """The informer that has that namespace's objects."""
        return self._informers[kind, None if self._cluster_wide else namespace]

    def children(self, kind: Kind, pipe: ObjectKey) -> list[Manifest]:
        """Everything of that kind that bears the pipe's label or is owned by a pipe of that name."""
        return self.of(kind, pipe.namespace).of(pipe)

    def look(self, pipe: ObjectKey, *, own: bool) -> Look | None:
        """At the nodes as the planner sees them: with what pods ask for, and what plans of other pipes have reserved.
        own: whether that pipe's pods and reservations count too. None where Nodes may not be read.
        """
        if self._nodes is None:
            return None
        without = None if own else pipe
        every = not self._may_not_read_all_pods
        return self._cluster_nodes.look(
            self._of_all if every else self._of_members,
            without=without,
            reserved=self.reservations.all(without=without),
            all_pods=every,
        )

    @property
    def emptied(self) -> Mapping[str, tuple[Taint, ...]] | None:
        """Nodes that are being emptied, with the taints that say so; None where Nodes may not be read."""
        return None if self._nodes is None else self._emptied

    def pods_on(self, node: str) -> Iterable[Manifest]:
        """Those of all pipes that were scheduled to it."""
        for (kind, _), informer in self._informers.items():
            if kind is POD:
                yield from informer.of(_on_node(node))

    def pods(self) -> Iterable[Manifest]:
        """Those of all pipes."""
        for (kind, _), informer in self._informers.items():
            if kind is POD:
                yield from informer.all()

    @property
    def all(self) -> list[Informer]:
        others = [] if self._all_pods is None or self._may_not_read_all_pods else [self._all_pods]
        return [*self._informers.values(), *([self._nodes] if self._nodes else []), *others]

    @property
    def trouble(self) -> list[KubeError]:
        return [informer.trouble for informer in self.all if informer.trouble is not None]

    async def wait_synced(self) -> None:
        while not all(informer.synced for informer in self.all):
            await asyncio.sleep(_SYNC_SECONDS)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for informer in self.all:
                group.create_task(informer.run())
