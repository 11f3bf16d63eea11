"""What plans in force have taken of nodes although no pod holds it yet, so that no other plan takes it too.

A member's Deployment reserves what its pod will ask for, on the node that the plan prefers, from the moment it is
decided until its pod is bound to a node (then the pod counts), or the Deployment is gone or asks for no pod. After a
restart of the operator all of it follows from the Deployments; only what was decided and not written yet is remembered
(`book`). A member without a preferred node reserves nothing: only the scheduler knows where it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from languagepipes_api.names import LABEL_ROLE

from languagepipes_operator.kube.informer import ObjectKey
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.cluster_nodes import Reservation
from languagepipes_operator.observe.ownership import is_over, label
from languagepipes_operator.planning.kubernetes_nodes import requested_by

_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_RING_ROLES = ("stage", "end-model")


def reservation_of(deployment: Manifest) -> Reservation | None:
    """None for what is no member of a ring, wants no pod, or prefers no node."""
    spec = deployment["spec"]
    if label(deployment, LABEL_ROLE) not in _RING_ROLES or spec.get("replicas", 1) == 0:
        return None
    template = spec["template"]
    node = preferred_node(template)
    return None if node is None else Reservation(node, requested_by(template))


def preferred_node(pod: Manifest) -> str | None:
    """The node that the planner chose, by the affinity of the pod (`children.pods.ring_placement`)."""
    affinity = ((pod.get("spec") or {}).get("affinity") or {}).get("nodeAffinity") or {}
    for term in reversed(affinity.get(_PREFERRED) or ()):
        for field in (term.get("preference") or {}).get("matchFields") or ():
            values: list[str] = field.get("values") or []
            if field.get("key") == "metadata.name" and field.get("operator") == "In" and len(values) == 1:
                return str(values[0])
    return None


def unbound(deployments: Iterable[Manifest], pods: Iterable[Manifest]) -> dict[str, Reservation]:
    """By the Deployment's name, what members reserve that have no pod on a node."""
    bound = [
        pod["metadata"].get("labels") or {}
        for pod in pods
        if (pod.get("spec") or {}).get("nodeName") and not is_over(pod)
    ]
    found = {}
    for deployment in deployments:
        reservation = reservation_of(deployment)
        if reservation is not None and not any(_selects(deployment, labels) for labels in bound):
            found[deployment["metadata"]["name"]] = reservation
    return found


def _selects(deployment: Manifest, labels: Mapping[str, str]) -> bool:
    wanted = (deployment["spec"].get("selector") or {}).get("matchLabels") or {}
    return bool(wanted) and wanted.items() <= labels.items()


class Reservations:
    """Those of all pipes. deployments, pods: a pipe's, as cached."""

    def __init__(
        self,
        deployments: Callable[[ObjectKey], Iterable[Manifest]],
        pods: Callable[[ObjectKey], Iterable[Manifest]],
    ) -> None:
        self._deployments = deployments
        self._pods = pods
        self._changed: set[ObjectKey] = set()
        self._known: dict[ObjectKey, dict[str, Reservation]] = {}
        self._booked: dict[ObjectKey, dict[str, Reservation]] = {}

    def changed(self, pipe: ObjectKey) -> None:
        """Something of the pipe has changed; looked at when somebody asks."""
        self._changed.add(pipe)

    def book(self, pipe: ObjectKey, wanted: Iterable[Manifest]) -> None:
        """Deployments that were decided and are about to be written."""
        found = {each["metadata"]["name"]: reservation_of(each) for each in wanted if each.get("kind") == "Deployment"}
        self._booked[pipe] = {name: each for name, each in found.items() if each is not None}

    def release(self, pipe: ObjectKey) -> None:
        """They were written, refused, or given up: from now on the Deployments that there are tell."""
        self._booked.pop(pipe, None)
        self._changed.add(pipe)  # what we wrote is in the caches, and no watch has told of it yet

    def all(self, *, without: ObjectKey | None = None) -> list[Reservation]:
        """without: a pipe whose own do not count."""
        for pipe in self._changed:
            found = unbound(self._deployments(pipe), self._pods(pipe))
            if found:
                self._known[pipe] = found
            else:
                self._known.pop(pipe, None)
        self._changed.clear()
        result: list[Reservation] = []
        for pipe in self._known.keys() | self._booked.keys():
            if pipe == without:
                continue
            result += self._known.get(pipe, {}).values()
            if booked := self._booked.get(pipe):
                written = {each["metadata"]["name"] for each in self._deployments(pipe)}
                result += (each for name, each in booked.items() if name not in written)
        return result
