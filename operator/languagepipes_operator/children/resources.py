"""The requests and limits of a container. They follow from the plan's bytes; the template's take precedence.

The planner counts what a member allocates. A CPU member's memory limit is `memory` where the spec has one, and
otherwise what was counted and an eighth more, for what cannot be counted (the allocator's fragments, page tables).
No CPU limit is set: throttling costs every token of the ring, and an idle core costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from languagepipes_api.plan import Device

from languagepipes_operator.children import quantities
from languagepipes_operator.planning.kubernetes_nodes import stands_for_gpus
from languagepipes_operator.planning.nodes import GPU_RESOURCE

_GIB = 2**30
_MIB = 2**20

# Changing any of these rolls no running pod (see `decide.last_applied`), but every later one differs.
MEMBER_CPU_REQUEST = "500m"
STORE_CPU_REQUEST = "100m"
# A GPU member's main memory: the process, CUDA's libraries and the buffers that weights pass through.
GPU_HOST_REQUEST_BYTES = 2 * _GIB
GPU_HOST_LIMIT_BYTES = 4 * _GIB
# The store's pages of files are the kernel's to take back, and a GGUF file is converted a few rows at a time.
STORE_REQUEST_BYTES = 256 * _MIB
STORE_LIMIT_BYTES = 2 * _GIB


def member_resources(
    *,
    device: Device,
    need_bytes: int,
    budget_bytes: int | None,
    request_bytes: int,
    template: Mapping[str, Any],
    stored_bytes: int = 0,
) -> dict[str, dict[str, str]]:
    """need_bytes: weights, KV and overhead on the device; budget_bytes: the spec's `memory`. request_bytes: main
    memory that the plan counted with when it chose nodes; 0 in an older plan. stored_bytes: main memory beside all of
    these, which the plan did not count: of the limit alone, since it fills slowly or never.
    """
    if device == "GPU":
        request, limit = GPU_HOST_REQUEST_BYTES, GPU_HOST_LIMIT_BYTES
    else:
        limit = budget_bytes if budget_bytes is not None else need_bytes + need_bytes // 8
        request = need_bytes
    request = min(request_bytes or request, limit)
    limits = {"memory": quantities.of_bytes(limit + stored_bytes)}
    if device == "GPU" and not _names_gpus(template):
        limits[GPU_RESOURCE] = "1"
    return _merged({"cpu": MEMBER_CPU_REQUEST, "memory": quantities.of_bytes(request)}, limits, template)


def store_resources(template: Mapping[str, Any], *, ephemeral_storage: str | None) -> dict[str, dict[str, str]]:
    """The same for every model. ephemeral_storage: what its files take on the node's disk, where somebody said it."""
    requests = {"cpu": STORE_CPU_REQUEST, "memory": quantities.of_bytes(STORE_REQUEST_BYTES)}
    if ephemeral_storage is not None:
        requests["ephemeral-storage"] = ephemeral_storage
    return _merged(requests, {"memory": quantities.of_bytes(STORE_LIMIT_BYTES)}, template)


def threads(template: Mapping[str, Any]) -> int | None:
    """Compute threads where the process cannot find the number itself: a CPU request without a limit. It reads a limit
    from its cgroup; with neither it takes every CPU that it finds.
    """
    if "cpu" in template.get("limits", {}) or "cpu" not in template.get("requests", {}):
        return None
    cpus = quantities.value_of(template["requests"]["cpu"])
    return max(1, -(-cpus.numerator // cpus.denominator))


def _names_gpus(template: Mapping[str, Any]) -> bool:
    """Whether the template requests GPUs itself, of any kind."""
    return any(map(stands_for_gpus, {*template.get("limits", {}), *template.get("requests", {})}))


def _merged(requests: dict[str, str], limits: dict[str, str], template: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Ours with the template's over them. A request above its limit is refused by the API server: of two such, the
    one that the template did not write gives way.
    """
    asked = {name: quantities.canonical(amount) for name, amount in template.get("requests", {}).items()}
    bounded = {name: quantities.canonical(amount) for name, amount in template.get("limits", {}).items()}
    requests, limits = {**requests, **asked}, {**limits, **bounded}
    for name in requests.keys() & limits.keys():
        if quantities.value_of(requests[name]) > quantities.value_of(limits[name]):
            if name in asked and name not in bounded:
                limits[name] = requests[name]
            elif name not in asked:
                requests[name] = limits[name]
    return {"requests": dict(sorted(requests.items())), "limits": dict(sorted(limits.items()))}
