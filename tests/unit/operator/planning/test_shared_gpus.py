"""Time-sliced, MPS and MIG GPUs count for what they are."""

from __future__ import annotations

from typing import Any

from languagepipes_api.template import PodTemplate
from languagepipes_operator.planning import node_of
from languagepipes_operator.planning.nodes import Gpus
from languagepipes_operator.planning.placement import Packed, Unpacked, pack
from languagepipes_operator.planning.requests import MemberRequest

GIB = 2**30
SLICE = "nvidia.com/mig-1g.5gb"


def gpu_node(name: str, allocatable: dict[str, str], labels: dict[str, str], pods: Any = ()) -> Any:
    resources = {"cpu": "8", "memory": "64Gi", **allocatable}
    return node_of({"metadata": {"name": name, "labels": labels}, "status": {"allocatable": resources}}, pods)


def member(need_gib: float, template: PodTemplate | None = None, name: str = "a") -> MemberRequest:
    return MemberRequest.of(name, f"stage {name}", "GPU", template, need_bytes=int(need_gib * GIB), kv_bytes=0)


def asking(resource: str, count: int = 1) -> PodTemplate:
    return PodTemplate.model_validate({"resources": {"limits": {resource: str(count)}}})


TIME_SLICED = gpu_node(
    "t",
    {"nvidia.com/gpu": "8"},
    {
        "nvidia.com/gpu.memory": "16384",
        "nvidia.com/gpu.replicas": "4",
        "nvidia.com/gpu.sharing-strategy": "time-slicing",
    },
)
MIG = gpu_node("m", {SLICE: "2"}, {f"{SLICE}.memory": "4864", "nvidia.com/gpu.memory": "40960"})


def test_pods_that_share_a_gpu_have_their_part_of_its_memory_each() -> None:
    assert TIME_SLICED.gpus == 8
    assert TIME_SLICED.gpu_memory_bytes == (4 * GIB,) * 8
    assert isinstance(pack([member(3.5)], [TIME_SLICED], replicas=8), Packed)
    refused = pack([member(5)], [TIME_SLICED], replicas=1)
    assert isinstance(refused, Unpacked)
    assert "for each of the 4 pods that share it" in refused.error.message


def test_shared_gpus_that_were_renamed_keep_the_labels_of_the_first_name() -> None:
    node = gpu_node(
        "r", {"nvidia.com/gpu.shared": "4"}, {"nvidia.com/gpu.memory": "16384", "nvidia.com/gpu.replicas": "2"}
    )

    assert node.gpus == 0
    assert node.gpus_of("nvidia.com/gpu.shared") == Gpus(4, memory_bytes=8 * GIB)


def test_slices_of_a_gpu_are_counted_with_their_own_memory() -> None:
    assert MIG.gpus_of(SLICE) == Gpus(2, memory_bytes=4864 * 2**20)
    assert isinstance(pack([member(4, asking(SLICE))], [MIG], replicas=2), Packed)
    three = pack([member(4, asking(SLICE))], [MIG], replicas=3)
    assert isinstance(three, Unpacked)
    assert three.error.reason == "InsufficientGPUs"
    assert f"3 GPUs of the kind {SLICE}, and 2 are free" in three.error.message
    large = pack([member(6, asking(SLICE))], [MIG], replicas=1)
    assert isinstance(large, Unpacked)
    assert large.error.reason == "StageTooLarge"


def test_slices_that_pods_hold_are_taken() -> None:
    pod = {"spec": {"nodeName": "m", "containers": [{"resources": {"limits": {SLICE: "1"}}}]}}
    node = gpu_node("m", {SLICE: "2"}, {f"{SLICE}.memory": "4864"}, [pod])

    assert node.gpus_of(SLICE).free == 1


def test_a_kind_of_gpu_that_no_node_has_is_left_to_the_scheduler() -> None:
    packed = pack([member(4, asking("amd.com/gpu"))], [MIG], replicas=1)

    assert isinstance(packed, Packed)
    assert packed.assignments[0]["a"].node is None
