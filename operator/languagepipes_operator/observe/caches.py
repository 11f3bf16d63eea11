"""The informers of everything that pipes are made of, for one namespace, several, or all.

An object is found by its label, and counts as a child only if a pipe owns it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from languagepipes_api.names import API_GROUP, KIND, LABEL_MANAGED_BY, LABEL_PIPE, MANAGED_BY

from languagepipes_operator.kube.client import Kube
from languagepipes_operator.kube.errors import KubeError
from languagepipes_operator.kube.informer import Informer, ObjectKey, key_of, trimmed, trimmed_pod
from languagepipes_operator.kube.kinds import CHILDREN, NODE, POD, Kind, Manifest
from languagepipes_operator.metrics import Metrics

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
    a node came, went, or offers something else.
    """

    def __init__(
        self,
        kube: Kube,
        metrics: Metrics,
        namespaces: Iterable[str],
        on_change: Callable[[ObjectKey], None],
        on_nodes: Callable[[], None] = lambda: None,
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
                index=pipes_of,
            )
            for kind in (*CHILDREN, POD)
            for place in places
        }
        self._on_change = on_change
        self._cluster_wide = places == (None,)
        for informer in self._informers.values():
            informer.listeners.append(self._report)
        self._nodes = Informer(kube, NODE, metrics, trim=trimmed_node) if self._cluster_wide else None
        self._on_nodes = on_nodes
        self._reported_nodes: dict[ObjectKey, Manifest] = {}
        if self._nodes is not None:
            self._nodes.listeners.append(self._report_node)

    def _report(self, item: Manifest) -> None:
        for pipe in pipes_of(item):
            self._on_change(pipe)

    def _report_node(self, item: Manifest) -> None:
        """Kubelets write every few minutes although nothing has changed; that is not reported."""
        key, now = key_of(item), self._nodes.get(key_of(item)) if self._nodes is not None else None
        if now is None:
            self._reported_nodes.pop(key, None)
        else:
            plain = {"labels": now["metadata"].get("labels"), "spec": now["spec"], "status": now["status"]}
            if self._reported_nodes.get(key) == plain:
                return
            self._reported_nodes[key] = plain
        self._on_nodes()

    def of(self, kind: Kind, namespace: str) -> Informer:
        """The informer that has that namespace's objects."""
        return self._informers[kind, None if self._cluster_wide else namespace]

    def children(self, kind: Kind, pipe: ObjectKey) -> list[Manifest]:
        """Everything of that kind that bears the pipe's label or is owned by a pipe of that name."""
        return self.of(kind, pipe.namespace).of(pipe)

    @property
    def nodes(self) -> list[Manifest] | None:
        """None where Nodes may not be read."""
        return None if self._nodes is None else list(self._nodes.all())

    def pods(self) -> Iterable[Manifest]:
        """Those of all pipes."""
        for (kind, _), informer in self._informers.items():
            if kind is POD:
                yield from informer.all()

    @property
    def all(self) -> list[Informer]:
        return [*self._informers.values(), *([self._nodes] if self._nodes else [])]

    @property
    def trouble(self) -> list[KubeError]:
        return [informer.trouble for informer in self.all if informer.trouble is not None]

    async def wait_synced(self) -> None:
        for informer in self.all:
            await informer.wait_synced()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for informer in self.all:
                group.create_task(informer.run())
