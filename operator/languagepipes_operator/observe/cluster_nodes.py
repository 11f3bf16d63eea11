"""The cluster's nodes as the planner sees them, kept up to date by watches: what each has, and what pods ask of it.

Sums are kept for each node, and changed by one pod at a time: a look at thousands of nodes, with tens of thousands of
pods on them, builds nothing but what has changed since the last look. Of a pod only its node and its sums are kept.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace

from languagepipes_api.names import LABEL_MANAGED_BY, LABEL_PIPE, MANAGED_BY

from languagepipes_operator.kube.informer import ObjectKey
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.planning.kubernetes_nodes import NOTHING, Requested, node_of, requested_by, with_requested
from languagepipes_operator.planning.nodes import Node

# What is bound to a node and has not ended: all that the scheduler counts.
BOUND = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"
_ENDED = ("Succeeded", "Failed")
_ASKS = "asks"


@dataclass(frozen=True)
class Reservation:
    """What a member will ask of a node, whose pod is not bound to one yet."""

    node: str
    requested: Requested


@dataclass(frozen=True, slots=True)
class _Asks:
    """node: "" while it is bound to none. pipe: whose member it is; "" for pods of others."""

    node: str
    pipe: str
    requested: Requested


def summed_pod(item: Manifest) -> Manifest:
    """A pod as an informer keeps it for this module: what it is, its node, and what it asks for."""
    metadata = item["metadata"]
    kept = {key: metadata[key] for key in ("name", "uid", "resourceVersion") if key in metadata}
    # A cluster has few namespaces and nodes, and many pods: each name is kept once.
    kept["namespace"] = sys.intern(metadata.get("namespace", ""))
    return {"metadata": kept, _ASKS: _asks(item)}


def _asks(item: Manifest) -> _Asks:
    labels = item["metadata"].get("labels") or {}
    ours = labels.get(LABEL_MANAGED_BY) == MANAGED_BY
    ended = (item.get("status") or {}).get("phase") in _ENDED
    node = "" if ended else str((item.get("spec") or {}).get("nodeName") or "")
    return _Asks(sys.intern(node), sys.intern(labels.get(LABEL_PIPE, "") if ours else ""), requested_by(item))


class PodSums:
    """What pods ask of each node, all together and by pipe."""

    def __init__(self) -> None:
        self._pods: dict[ObjectKey, _Asks] = {}
        self._by_node: dict[str, Requested] = {}
        self._by_pipe: dict[ObjectKey, dict[str, Requested]] = {}
        # Nodes whose sum has changed since somebody looked.
        self.changed: set[str] = set()

    def put(self, key: ObjectKey, item: Manifest | None) -> bool:
        """A pod as it is now; None once it is gone. Answers whether a member of a pipe has left its node."""
        before = self._pods.pop(key, None)
        now = None if item is None else item.get(_ASKS) or _asks(item)
        if now is not None and now.node:
            self._pods[key] = now
        if before == now:
            return False
        for asks, sign in ((before, -1), (now, 1)):
            if asks is not None and asks.node:
                self._add(key.namespace, asks, sign)
        return before is not None and bool(before.pipe) and (now is None or now.node != before.node)

    def of(self, node: str) -> Requested:
        return self._by_node.get(node, NOTHING)

    def of_pipe(self, pipe: ObjectKey) -> dict[str, Requested]:
        """By node."""
        return self._by_pipe.get(pipe, {})

    def _add(self, namespace: str, asks: _Asks, sign: int) -> None:
        self.changed.add(asks.node)
        _change(self._by_node, asks, sign)
        if asks.pipe:
            pipe = ObjectKey(namespace, asks.pipe)
            of_pipe = self._by_pipe.setdefault(pipe, {})
            _change(of_pipe, asks, sign)
            if not of_pipe:
                del self._by_pipe[pipe]


def _change(sums: dict[str, Requested], asks: _Asks, sign: int) -> None:
    now = sums.get(asks.node, NOTHING).plus(asks.requested, sign)
    if now == NOTHING:
        sums.pop(asks.node, None)
    else:
        sums[asks.node] = now


class ClusterNodes:
    """The nodes that there are, with a PodSums to read."""

    def __init__(self) -> None:
        self._empty: dict[str, Node] = {}
        self._nodes: dict[str, Node] = {}
        self._in_order: list[str] | None = None
        self._sums: PodSums | None = None

    def put(self, name: str, item: Manifest | None) -> None:
        """A Node as it is now; None once it is gone."""
        self._nodes.pop(name, None)
        if item is None:
            self._empty.pop(name, None)
        else:
            self._empty[name] = node_of(item)
        self._in_order = None

    def look(
        self,
        sums: PodSums,
        *,
        without: ObjectKey | None,
        reserved: Iterable[Reservation] = (),
        all_pods: bool = True,
    ) -> tuple[Node, ...]:
        """By name. without: a pipe whose own pods do not count. reserved: what counts besides. all_pods: whether the
        sums are of every pod, or of members of pipes alone.
        """
        if sums is not self._sums:
            self._sums, self._nodes = sums, {}
        for name in sums.changed:
            self._nodes.pop(name, None)
        sums.changed.clear()
        if self._in_order is None:
            self._in_order = sorted(self._empty)
        if len(self._nodes) < len(self._empty):
            for name in self._empty.keys() - self._nodes.keys():
                self._nodes[name] = with_requested(self._empty[name], sums.of(name))
        others: dict[str, Requested] = {}
        for name, own in ({} if without is None else sums.of_pipe(without)).items():
            others[name] = others.get(name, NOTHING).plus(own, -1)
        for each in reserved:
            others[each.node] = others.get(each.node, NOTHING).plus(each.requested)
        special = {
            name: with_requested(self._empty[name], sums.of(name).plus(change))
            for name, change in others.items()
            if name in self._empty
        }
        found = (special.get(name) or self._nodes[name] for name in self._in_order)
        return tuple(found if all_pods else (replace(node, counts_all_pods=False) for node in found))
