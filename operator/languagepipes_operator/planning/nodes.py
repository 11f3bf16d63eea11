"""What the planner may know of the machines: a small snapshot, taken by others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

GPU_RESOURCE = "nvidia.com/gpu"


@dataclass(frozen=True)
class Taint:
    """core/v1's Taint: who does not tolerate it stays away."""

    key: str
    value: str = ""
    effect: str = "NoSchedule"


@dataclass(frozen=True)
class Gpus:
    """GPUs of one extended resource on a node. memory_bytes: of each; None where no label states it."""

    count: int
    requested: int = 0
    memory_bytes: int | None = None

    @property
    def free(self) -> int:
        return max(0, self.count - self.requested)


NO_GPUS = Gpus(0)


@dataclass(frozen=True)
class Node:
    """One machine.

    On its own (`languagepipes up`): memory_bytes is its whole memory, gpu_memory_bytes that of each GPU.

    Of a cluster (kubernetes): memory_bytes is what pods may ask for in all, gpus how many GPUs there are of the
    extended resource nvidia.com/gpu, gpu_memory_bytes their memory as labels state it (empty where none does).
    requested_bytes, requested_cpus, requested_gpus: what pods that are not the pipe's have asked for already. cpus:
    None where it is not known. other_gpus: by extended resource, those of another name: MIG slices, shared GPUs that
    were renamed, other vendors'. gpu_sharing: how many pods share each nvidia.com/gpu; gpus and gpu_memory_bytes count
    their parts. counts_all_pods: false where only pods of pipes could be read, so that others may hold
    what looks free. schedulable: ready and not cordoned.
    """

    name: str
    memory_bytes: int
    gpu_memory_bytes: tuple[int, ...] = ()
    kubernetes: bool = False
    gpus: int = 0
    cpus: Fraction | None = None
    requested_bytes: int = 0
    requested_cpus: Fraction = Fraction(0)
    requested_gpus: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    schedulable: bool = True
    other_gpus: Mapping[str, Gpus] = field(default_factory=dict)
    gpu_sharing: int = 1
    counts_all_pods: bool = True

    def gpus_of(self, resource: str) -> Gpus:
        """Of the extended resource; none where the node has none."""
        if resource == GPU_RESOURCE:
            return Gpus(self.gpus, self.requested_gpus, min(self.gpu_memory_bytes, default=None))
        return self.other_gpus.get(resource, NO_GPUS)

    @property
    def has_gpus(self) -> bool:
        return self.gpus > 0 or any(each.count for each in self.other_gpus.values())

    @property
    def free_bytes(self) -> int:
        """Memory that nobody has asked for."""
        return max(0, self.memory_bytes - self.requested_bytes)

    @property
    def free_gpus(self) -> int:
        """GPUs that nobody has asked for."""
        return max(0, self.gpus - self.requested_gpus)

    @property
    def free_cpus(self) -> Fraction | None:
        """CPUs that nobody has asked for."""
        return None if self.cpus is None else max(Fraction(0), self.cpus - self.requested_cpus)
