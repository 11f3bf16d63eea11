"""The cluster's nodes as the planner sees them, kept up to date by watches: what each has, and what pods ask of it.

Sums are kept for each node, and changed by one pod at a time: a look at thousands of nodes, with tens of thousands of
pods on them, builds nothing but what has changed since the last look. Of a pod only its node and its sums are kept.

A look is taken on the event loop, which copies what there is, and built in a thread: the loop waits for no node.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
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

    def by_node(self) -> dict[str, Requested]:
        """As they are now; nodes of which nothing is asked are left out."""
        return dict(self._by_node)

    def of_pipe(self, pipe: ObjectKey) -> dict[str, Requested]:
        """The same of its members."""
        return dict(self._by_pipe.get(pipe, {}))

    def _add(self, namespace: str, asks: _Asks, sign: int) -> None:
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


class _Known:
    """A node without its pods, and as it was built last."""

    __slots__ = ("_built", "empty")

    def __init__(self, empty: Node) -> None:
        self.empty = empty
        self._built: tuple[Requested, bool, Node] | None = None

    def built(self, requested: Requested, *, all_pods: bool) -> Node:
        """With what pods ask of it. For any thread: what was built last fits, or is replaced as a whole."""
        last = self._built
        if last is None or last[1] is not all_pods or (last[0] is not requested and last[0] != requested):
            self._built = last = (requested, all_pods, self.once(requested, all_pods=all_pods))
        return last[2]

    def once(self, requested: Requested, *, all_pods: bool) -> Node:
        """The same for one look alone."""
        node = with_requested(self.empty, requested)
        return node if all_pods else replace(node, counts_all_pods=False)


@dataclass(frozen=True)
class Look:
    """What there was at one moment. own: what is asked and does not count. reserved: what counts besides."""

    known: Mapping[str, _Known]
    requested: Mapping[str, Requested]
    own: Mapping[str, Requested]
    reserved: tuple[Reservation, ...]
    all_pods: bool

    def nodes(self) -> tuple[Node, ...]:
        """By name. For any thread."""
        change: dict[str, Requested] = {name: NOTHING.plus(own, -1) for name, own in self.own.items()}
        for each in self.reserved:
            change[each.node] = change.get(each.node, NOTHING).plus(each.requested)
        found = []
        for name in sorted(self.known):
            node, requested = self.known[name], self.requested.get(name, NOTHING)
            if name in change:
                found.append(node.once(requested.plus(change[name]), all_pods=self.all_pods))
            else:
                found.append(node.built(requested, all_pods=self.all_pods))
        return tuple(found)


class ClusterNodes:
    """The nodes that there are, with a PodSums to read."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def put(self, name: str, item: Manifest | None) -> None:
        """A Node as it is now; None once it is gone."""
        if item is None:
            self._known.pop(name, None)
        else:
            self._known[name] = _Known(node_of(item))

    def look(
        self,
        sums: PodSums,
        *,
        without: ObjectKey | None,
        reserved: Iterable[Reservation] = (),
        all_pods: bool = True,
    ) -> Look:
        """Of this moment. without: a pipe whose own pods do not count. reserved: what counts besides. all_pods: whether
        the sums are of every pod, or of members of pipes alone.
        """
        own = {} if without is None else sums.of_pipe(without)
        return Look(dict(self._known), sums.by_node(), own, tuple(reserved), all_pods)
