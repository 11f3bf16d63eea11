"""From what the API server says of a Node and its pods to what the planner may know. Pure; asks nobody.

GPU memory is in the labels of NVIDIA's gpu-feature-discovery
(https://github.com/NVIDIA/k8s-device-plugin/tree/main/docs/gpu-feature-discovery): RESOURCE.memory, in MiB. Of a MIG
slice (nvidia.com/mig-1g.5gb, or nvidia.com/gpu with the strategy "single") it is the slice's. Of a GPU that pods share
(time-slicing, MPS) it is the whole GPU's, and RESOURCE.replicas says how many share it: the node offers so many of
them, none of which is sure of more than its part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from languagepipes_api.quantity import parse_resource_quantity

from languagepipes_operator.planning.nodes import GPU_RESOURCE, Gpus, Node, Taint

GPU_MEMORY_LABEL = "nvidia.com/gpu.memory"
# What the device plugin calls shared GPUs where it is told to rename them; the labels keep the first name.
_RENAMED = ".shared"
_MIB = 2**20
_FINISHED = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Requested:
    """What pods ask of a node. gpus: by extended resource that stands for GPUs, ascending by name."""

    memory_bytes: Fraction = Fraction(0)
    cpus: Fraction = Fraction(0)
    gpus: tuple[tuple[str, Fraction], ...] = ()

    def plus(self, other: Requested, sign: int = 1) -> Requested:
        """Both together; sign -1: this without the other."""
        gpus = dict(self.gpus)
        for resource, count in other.gpus:
            gpus[resource] = gpus.get(resource, Fraction(0)) + sign * count
        return Requested(
            self.memory_bytes + sign * other.memory_bytes,
            self.cpus + sign * other.cpus,
            tuple(sorted((resource, count) for resource, count in gpus.items() if count)),
        )


NOTHING = Requested()


def requested_by(pod: Mapping[str, Any]) -> Requested:
    """What the scheduler sets aside for a pod (`pod_request`), of everything that the planner counts."""
    spec = pod.get("spec") or {}
    places = [spec, *(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    named = {
        name
        for place in places
        for kind in ("requests", "limits")
        for name in ((place.get("resources") or {}).get(kind) or ())
    }
    gpus = ((name, pod_request(pod, name)) for name in sorted(filter(stands_for_gpus, named)))
    return _shared(
        Requested(
            pod_request(pod, "memory"), pod_request(pod, "cpu"), tuple((name, count) for name, count in gpus if count)
        )
    )


@lru_cache(maxsize=16384)
def _shared(requested: Requested) -> Requested:
    """One value for all pods that ask for the same: a large cluster has many pods and few kinds of them."""
    return requested


def node_of(manifest: Mapping[str, Any], pods: Iterable[Mapping[str, Any]] = ()) -> Node:
    """The node that a core/v1 Node describes.

    pods: core/v1 Pods of any node; those on this one that have not ended count with what they request. Leave out the
    pipe's own pods, whose place the plan is about. Amounts that are no quantity count as nothing.
    """
    metadata, spec, status = manifest["metadata"], manifest.get("spec") or {}, manifest.get("status") or {}
    name, labels = str(metadata["name"]), dict(metadata.get("labels") or {})
    allocatable = status.get("allocatable") or status.get("capacity") or {}
    kinds = {
        resource: _gpus(resource, labels, int(_amount(amount)))
        for resource, amount in allocatable.items()
        if stands_for_gpus(resource)
    }
    plain = kinds.pop(GPU_RESOURCE, Gpus(0))
    node = Node(
        name=name,
        memory_bytes=int(_amount(allocatable.get("memory", 0))),
        gpu_memory_bytes=() if plain.memory_bytes is None else (plain.memory_bytes,) * plain.count,
        kubernetes=True,
        gpus=plain.count,
        cpus=_amount(allocatable["cpu"]) if "cpu" in allocatable else None,
        labels=labels,
        taints=tuple(
            Taint(str(taint["key"]), str(taint.get("value") or ""), str(taint["effect"]))
            for taint in spec.get("taints") or ()
        ),
        schedulable=not spec.get("unschedulable") and _is_ready(status),
        other_gpus=kinds,
        gpu_sharing=_sharing(GPU_RESOURCE, labels) if plain.count else 1,
    )
    together = NOTHING
    for pod in pods:
        if _is_on(pod, name):
            together = together.plus(requested_by(pod))
    return with_requested(node, together)


def with_requested(node: Node, requested: Requested) -> Node:
    """The node on which pods ask for so much, and no more."""
    gpus = dict(requested.gpus)
    return replace(
        node,
        requested_bytes=int(requested.memory_bytes),
        requested_cpus=requested.cpus,
        requested_gpus=int(gpus.get(GPU_RESOURCE, 0)),
        other_gpus={name: replace(kind, requested=int(gpus.get(name, 0))) for name, kind in node.other_gpus.items()},
    )


def _gpus(resource: str, labels: Mapping[str, str], count: int) -> Gpus:
    text = labels.get(f"{resource.removesuffix(_RENAMED)}.memory", "")
    memory = int(text) * _MIB // _sharing(resource, labels) if text.isascii() and text.isdecimal() else None
    return Gpus(count, memory_bytes=memory)


def _sharing(resource: str, labels: Mapping[str, str]) -> int:
    """How many pods share each GPU of the resource."""
    text = labels.get(f"{resource.removesuffix(_RENAMED)}.replicas", "")
    return max(1, int(text)) if text.isascii() and text.isdecimal() else 1


def stands_for_gpus(resource: str) -> bool:
    """Whether an extended resource is a kind of GPU: nvidia.com/gpu, a MIG slice, another vendor's."""
    return "/" in resource and ("gpu" in resource or resource.startswith("nvidia.com/"))


def pod_request(pod: Mapping[str, Any], resource: str) -> Fraction:
    """What the scheduler sets aside for a pod: its containers together with its sidecars, or the most that an init
    container needs beside the sidecars started before it, if that is more; and the pod's overhead.

    A limit without a request is a request. Resources of the pod as a whole (`spec.resources`) stand in their place
    (https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers).
    """
    spec = pod.get("spec") or {}
    overhead = _amount((spec.get("overhead") or {}).get(resource, 0))
    whole = _request(spec, resource)
    if whole is not None:
        return whole + overhead
    sidecars, most = Fraction(0), Fraction(0)
    for container in spec.get("initContainers") or ():
        request = _request(container, resource) or Fraction(0)
        if container.get("restartPolicy") == "Always":
            sidecars += request
            most = max(most, sidecars)
        else:
            most = max(most, sidecars + request)
    running = sum((_request(each, resource) or Fraction(0) for each in spec.get("containers") or ()), sidecars)
    return max(running, most) + overhead


def _request(container: Mapping[str, Any], resource: str) -> Fraction | None:
    resources = container.get("resources") or {}
    for kind in ("requests", "limits"):
        if resource in (resources.get(kind) or {}):
            return _amount(resources[kind][resource])
    return None


def _amount(quantity: object) -> Fraction:
    return _parsed(quantity if isinstance(quantity, int) else str(quantity))


@lru_cache(maxsize=4096, typed=True)  # thousands of nodes say the same few amounts, at each look
def _parsed(quantity: int | str) -> Fraction:
    try:
        return parse_resource_quantity(quantity)
    except ValueError:
        return Fraction(0)


def _is_on(pod: Mapping[str, Any], node: str) -> bool:
    placed = (pod.get("spec") or {}).get("nodeName") == node
    return placed and (pod.get("status") or {}).get("phase") not in _FINISHED


def _is_ready(status: Mapping[str, Any]) -> bool:
    """A node that says nothing of itself (one without a kubelet, in tests) counts as ready."""
    conditions = status.get("conditions") or ()
    return next((each["status"] == "True" for each in conditions if each["type"] == "Ready"), True)
