"""What a member's pod asks of its node, as far as the planner must know: the plan's bytes, or its template's.

A CPU member's main memory is what the plan counts: weights, KV and overhead. Measured with SmolLM2 (float32, 2048
tokens, 16 sequences of KV, all of it touched at the start; an End Model and three stages): the process and everything
but weights and KV took 0.61 to 0.62 GiB at a stage and 0.68 GiB at the End Model, 0.28 GiB of it file pages of
libraries, at its peak, and 0.8 to 0.9 GiB are planned for that. Loading writes into the place where the weights stay,
and peaked no higher than running.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from languagepipes_api.plan import Device
from languagepipes_api.quantity import format_bytes, parse_resource_quantity
from languagepipes_api.template import PodTemplate, ResourcesSpec, StoreTemplate

from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.planning.kubernetes_nodes import stands_for_gpus
from languagepipes_operator.planning.nodes import GPU_RESOURCE

_MIB = 2**20
# A GPU member's main memory: the process, CUDA's libraries and the buffers that weights pass through.
GPU_HOST_BYTES = 2048 * _MIB


@dataclass(frozen=True)
class MemberRequest:
    """One member of a replica and what its pod requests.

    title: its name to people. memory_bytes: main memory. kv_bytes: the part of it that is KV. device_bytes: memory of
    its GPU, 0 on a CPU. gpus: how many it asks for of the extended resource gpu_resource.
    """

    name: str
    title: str
    device: Device
    template: PodTemplate | None
    memory_bytes: int
    kv_bytes: int
    device_bytes: int
    gpus: int
    cpus: Fraction
    gpu_resource: str = GPU_RESOURCE

    @classmethod
    def of(
        cls, name: str, title: str, device: Device, template: PodTemplate | None, *, need_bytes: int, kv_bytes: int
    ) -> MemberRequest:
        """need_bytes: weights, KV and overhead on its device."""
        return cls(
            name=name,
            title=title,
            device=device,
            template=template,
            memory_bytes=requested_bytes(template, memory_request_bytes(device, need_bytes)),
            kv_bytes=kv_bytes if device == "CPU" else 0,
            device_bytes=need_bytes if device == "GPU" else 0,
            gpus=requested_gpus(template, device),
            cpus=requested_cpus(template),
            gpu_resource=gpu_resource(template),
        )

    @property
    def left_to_scheduler(self) -> bool:
        """GPUs of several kinds, which no planner can tell apart."""
        others = other_gpus(self.template)
        return bool(others) and self.gpu_resource not in others


def memory_request_bytes(device: Device, need_bytes: int) -> int:
    """Main memory to ask the scheduler for, in whole MiB. need_bytes: weights, KV and overhead on the device."""
    return -(-(need_bytes if device == "CPU" else GPU_HOST_BYTES) // _MIB) * _MIB


def requested_bytes(template: PodTemplate | None, planned: int) -> int:
    """What the pod will ask for: the template's memory if it names any, else what is planned."""
    amount = _requested(template, "memory")
    return planned if amount is None else -int(-amount // 1)


def requested_cpus(template: PodTemplate | None) -> Fraction:
    """CPUs by the template; zero where it names none, since what the operator asks for then is little."""
    return _requested(template, "cpu") or Fraction(0)


def requested_gpus(template: PodTemplate | None, device: Device) -> int:
    """Of the kind that the template names, as many as it asks for; else one on a GPU. None where it names several."""
    amount = _requested(template, gpu_resource(template))
    if amount is not None:
        return int(amount)
    return 1 if device == "GPU" and not other_gpus(template) else 0


def gpu_resource(template: PodTemplate | None) -> str:
    """The one kind of GPU that the template names: nvidia.com/gpu if it names none, or several."""
    others = other_gpus(template)
    plain = _requested(template, GPU_RESOURCE)
    return others[0] if len(others) == 1 and plain is None else GPU_RESOURCE


def other_gpus(template: StoreTemplate | None) -> tuple[str, ...]:
    """Extended resources in the template that stand for GPUs of another kind: MIG slices, other vendors'."""
    named = {*_resources(template).limits, *_resources(template).requests} - {GPU_RESOURCE}
    return tuple(sorted(filter(stands_for_gpus, named)))


def memory_limit_bytes(template: PodTemplate | None) -> int | None:
    """The container's memory limit, where the template names one."""
    amount = _resources(template).limits.get("memory")
    return None if amount is None else -int(-parse_resource_quantity(amount) // 1)


def check_template(template: StoreTemplate | None, device: Device, title: str) -> None:
    """What the API server would refuse in every pod, and a schema cannot say. Raises PlanError(InvalidTemplate)."""
    resources = _resources(template)
    for name, limit in resources.limits.items():
        request = resources.requests.get(name, limit)
        if parse_resource_quantity(request) > parse_resource_quantity(limit):
            raise PlanError(
                "InvalidTemplate",
                f"{title}: its template requests {request} of {name} and limits it to {limit}: "
                "a request is at most its limit",
            )
    for name in sorted({*resources.requests, *resources.limits}):
        if "/" not in name:
            continue
        if (
            name not in resources.limits
            or resources.requests.get(name, resources.limits[name]) != resources.limits[name]
        ):
            raise PlanError(
                "InvalidTemplate",
                f"{title}: {name} is an extended resource: name it under limits, and under requests the same or not",
            )
        if parse_resource_quantity(resources.limits[name]).denominator != 1:
            raise PlanError("InvalidTemplate", f"{title}: {name} is {resources.limits[name]}: use a whole number")
    if device == "GPU" and _requested(template, GPU_RESOURCE) == 0 and not other_gpus(template):
        raise PlanError(
            "InvalidTemplate",
            f"{title} computes on a GPU, and its template limits {GPU_RESOURCE} to 0: use 1, or leave it out",
        )


def check_limit_holds(template: PodTemplate | None, title: str, need_bytes: int) -> None:
    """A CPU member in less memory than it needs would be ended by the kernel. Raises PlanError(LimitTooSmall)."""
    limit = memory_limit_bytes(template)
    if limit is not None and limit < need_bytes:
        raise PlanError(
            "LimitTooSmall",
            f"{title} needs {format_bytes(need_bytes)} (weights, overhead and KV for one sequence), and its template "
            f"limits memory to {format_bytes(limit)}: {format_bytes(need_bytes - limit)} short: raise limits.memory or "
            "leave it out, give it fewer layers, or use a shorter maxContextLength",
        )


def _requested(template: StoreTemplate | None, resource: str) -> Fraction | None:
    resources = _resources(template)
    amount = resources.requests.get(resource, resources.limits.get(resource))
    return None if amount is None else parse_resource_quantity(amount)


def _resources(template: StoreTemplate | None) -> ResourcesSpec:
    return (template and template.resources) or ResourcesSpec()
