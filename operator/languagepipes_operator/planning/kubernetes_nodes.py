"""From what the API server says of a Node and its pods to what the planner may know. Pure; asks nobody.

GPU memory is in the labels of NVIDIA's gpu-feature-discovery
(https://github.com/NVIDIA/k8s-device-plugin/tree/main/docs/gpu-feature-discovery): nvidia.com/gpu.memory, in MiB.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from languagepipes_api.quantity import parse_resource_quantity

from languagepipes_operator.planning.nodes import Node, Taint

GPU_RESOURCE = "nvidia.com/gpu"
GPU_MEMORY_LABEL = "nvidia.com/gpu.memory"
_MIB = 2**20
_FINISHED = ("Succeeded", "Failed")


def node_of(manifest: Mapping[str, Any], pods: Iterable[Mapping[str, Any]] = ()) -> Node:
    """The node that a core/v1 Node describes.

    pods: core/v1 Pods of any node; those on this one that have not ended count with what they request. Leave out the
    pipe's own pods, whose place the plan is about. Amounts that are no quantity count as nothing.
    """
    metadata, spec, status = manifest["metadata"], manifest.get("spec") or {}, manifest.get("status") or {}
    name, labels = str(metadata["name"]), dict(metadata.get("labels") or {})
    allocatable = status.get("allocatable") or status.get("capacity") or {}
    gpus = int(_amount(allocatable.get(GPU_RESOURCE, 0)))
    here = [pod for pod in pods if _is_on(pod, name)]
    return Node(
        name=name,
        memory_bytes=int(_amount(allocatable.get("memory", 0))),
        gpu_memory_bytes=_gpu_memories(labels, gpus),
        kubernetes=True,
        gpus=gpus,
        cpus=_amount(allocatable["cpu"]) if "cpu" in allocatable else None,
        requested_bytes=int(sum(pod_request(pod, "memory") for pod in here)),
        requested_cpus=sum((pod_request(pod, "cpu") for pod in here), Fraction(0)),
        requested_gpus=int(sum(pod_request(pod, GPU_RESOURCE) for pod in here)),
        labels=labels,
        taints=tuple(
            Taint(str(taint["key"]), str(taint.get("value") or ""), str(taint["effect"]))
            for taint in spec.get("taints") or ()
        ),
        schedulable=not spec.get("unschedulable") and _is_ready(status),
    )


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


def _gpu_memories(labels: Mapping[str, str], gpus: int) -> tuple[int, ...]:
    text = labels.get(GPU_MEMORY_LABEL, "")
    return (int(text) * _MIB,) * gpus if text.isascii() and text.isdecimal() else ()


def _is_on(pod: Mapping[str, Any], node: str) -> bool:
    placed = (pod.get("spec") or {}).get("nodeName") == node
    return placed and (pod.get("status") or {}).get("phase") not in _FINISHED


def _is_ready(status: Mapping[str, Any]) -> bool:
    """A node that says nothing of itself (one without a kubelet, in tests) counts as ready."""
    conditions = status.get("conditions") or ()
    return next((each["status"] == "True" for each in conditions if each["type"] == "Ready"), True)
