"""Which nodes a plan prefers, and what it says is short."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from languagepipes_api.facts import ModelFacts
from languagepipes_api.plan import Plan
from languagepipes_operator.planning import Node, PlanError, Taint, plan
from languagepipes_operator.planning.plan import place
from support.planned_models import GIB, QWEN3_8B, SMOLLM2, spec


def node(name: str, memory: float, *gpus: int, **more: Any) -> Node:
    """A node with so many GiB, and GPUs of so many GiB each."""
    more = {"gpus": len(gpus), "gpu_memory_bytes": tuple(gpu * GIB for gpu in gpus), **more}
    return Node(name, int(memory * GIB), kubernetes=True, **more)


def unlabelled(name: str, memory: float, gpus: int) -> Node:
    return node(name, memory, gpus=gpus)


def where(planned: Plan) -> str:
    """A placement in one line."""
    parts = [f"end-model@{planned.end_model.node}"]
    parts += [f"{stage.name}={stage.layers}@{stage.node}" for stage in planned.stages]
    return f"{' '.join(parts)} | {planned.max_sequences}"


def template(**fields: Any) -> dict[str, Any]:
    return {"template": fields}


GPUS = {"count": 2, "device": "GPU"}
ON_SSD = {"nodeSelector": {"disk": "ssd"}}
TOLERANT = {"tolerations": [{"key": "gpu", "operator": "Exists"}]}
GPU_TAINT = (Taint("gpu", "", "NoSchedule"),)
SSD = {"labels": {"disk": "ssd"}}

TABLE: list[tuple[str, ModelFacts, Any, dict[str, Any], list[Node], str]] = [
    (
        "members spread over nodes", SMOLLM2, 3, {}, [node("n1", 8), node("n2", 8)],
        "end-model@n2 stage-1=1-10@n1 stage-2=11-20@n2 stage-3=21-29@n1 | 16",
    ),
    (
        "one node takes all", SMOLLM2, 2, {}, [node("n1", 8)],
        "end-model@n1 stage-1=1-15@n1 stage-2=16-29@n1 | 11",
    ),
    (
        "KV is what the nodes leave, a quarter at most", QWEN3_8B, 3, {}, [node(name, 16) for name in "abc"],
        "end-model@c stage-1=1-12@a stage-2=13-24@b stage-3=25-35@c | 10",
    ),
    (
        "unlike nodes make a count unequal", QWEN3_8B, 3, {},
        [node(*each) for each in (("n1", 10), ("n2", 5.2), ("n3", 4.9), ("n4", 4))],
        "end-model@n4 stage-1=1-15@n1 stage-2=16-25@n2 stage-3=26-35@n3 | 1",
    ),
    (
        "GPU stages go to GPUs, the End Model to a node without", QWEN3_8B, GPUS, {},
        [node("g1", 32, 16), node("g2", 32, 16), node("c", 16)],
        "end-model@c stage-1=1-18@g1 stage-2=19-35@g2 | 12",
    ),
    (
        "unlike GPUs make a count unequal", QWEN3_8B, GPUS, {}, [node("g1", 32, 24), node("g2", 32, 6), node("c", 16)],
        "end-model@c stage-1=1-25@g1 stage-2=26-35@g2 | 2",
    ),
    (
        "GPUs of unknown memory take what was asked", QWEN3_8B, GPUS, {}, [unlabelled("g", 32, 2)],
        "end-model@g stage-1=1-18@g stage-2=19-35@g | 16",
    ),
    (
        "a selector, a taint that is tolerated, a node that is cordoned", SMOLLM2,
        [{"name": "a", "layers": 15, "template": ON_SSD}, {"name": "b", "template": TOLERANT}], {},
        [node("n1", 8, **SSD), node("n2", 9, taints=GPU_TAINT), node("n3", 64, schedulable=False), node("n4", 4)],
        "end-model@n4 a=1-15@n1 b=16-29@n2 | 16",
    ),
    (
        "what others asked for is not free", SMOLLM2, 1, {}, [node("n1", 64, requested_bytes=62 * GIB), node("n2", 8)],
        "end-model@n1 stage-1=1-29@n2 | 11",
    ),
    (
        "a template's own request counts", SMOLLM2,
        [{"name": "a", "template": {"resources": {"requests": {"memory": "7Gi"}}}}], {}, [node("n1", 8), node("n2", 6)],
        "end-model@n2 a=1-29@n1 | 11",
    ),
    (
        "a selector of nodes that are still to come", SMOLLM2, [{"name": "a", "template": ON_SSD}], {},
        [node("n1", 8)], "end-model@n1 a=1-29@None | 16",
    ),
    (
        "GPUs of another kind are the scheduler's",  SMOLLM2,
        [{"name": "a", "device": "GPU", "template": {"resources": {"limits": {"nvidia.com/mig-1g.5gb": 1}}}}], {},
        [node("n1", 8)], "end-model@n1 a=1-29@None | 16",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "stages", "more", "nodes", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_a_plan_prefers_nodes(
    model: ModelFacts, stages: Any, more: dict[str, Any], nodes: list[Node], expected: str
) -> None:
    assert where(plan(spec(stages, **more), model, nodes)) == expected


REFUSED: list[tuple[str, ModelFacts, Any, dict[str, Any], list[Node], str, str]] = [
    (
        "memory in all", QWEN3_8B, 3, {}, [node("n1", 8), node("n2", 4), node("n3", 4)], "InsufficientMemory",
        "4 members ask for 20.2 GiB of memory, and 16 GiB are free on the nodes they may run on (n1: 8 GiB; n2: 4 GiB; "
        "n3: 4 GiB): 4.2 GiB short: use a shorter maxContextLength, a smaller model, fewer replicas, or add memory",
    ),
    (
        "memory for all replicas", SMOLLM2, 1, {"replicas": 3}, [node("n1", 6)], "InsufficientMemory",
        "3 replicas: 2 members ask for 6.3 GiB of memory, and 6 GiB are free on the nodes they may run on (n1: 6 GiB): "
        "306 MiB short: use a shorter maxContextLength, a smaller model, fewer replicas, or add memory",
    ),
    (
        "memory of one node", QWEN3_8B, 1, {}, [node(name, 12) for name in "abc"], "StageTooLarge",
        "stage stage-1 asks for 14.6 GiB of memory, and the most that is free on a node that it may run on is 12 GiB "
        "(c): 2.6 GiB short: give it fewer layers, or use a shorter maxContextLength",
    ),
    (
        "memory that its template asks for", SMOLLM2,
        {"count": 1, **template(resources={"requests": {"memory": "20Gi"}})}, {}, [node("n1", 8)], "StageTooLarge",
        "stage stage-1 asks for 20 GiB of memory, and the most that is free on a node that it may run on is 8 GiB "
        "(n1): 12 GiB short: lower memory in its template, or leave it out",
    ),
    (
        "memory in pieces", QWEN3_8B, [{"name": "a", "layers": 17}, {"name": "b", "layers": 18}], {},
        [node("n1", 11), node("n2", 11)], "InsufficientMemory",
        "3 members do not fit on 2 nodes together: with the others placed, the End Model, which asks for 3.7 GiB of "
        "memory, finds no node (n1: 3 GiB of memory free, 693 MiB short; n2: 3.4 GiB of memory free, 293 MiB short): "
        "use more and smaller stages, a shorter maxContextLength, fewer replicas, or a larger node",
    ),
    (
        "GPUs", QWEN3_8B, {"count": 3, "device": "GPU"}, {},
        [node("g1", 32, 16), node("g2", 32, 16, 16, requested_gpus=1), node("c", 16)], "InsufficientGPUs",
        "3 members ask for 3 GPUs, and 2 are free (g1: 1; g2: 1; c: 0): 1 short: use fewer stages on GPUs, fewer "
        "replicas, or add GPUs",
    ),
    (
        "no GPU at all", QWEN3_8B, GPUS, {}, [node("c", 64)], "NoSuchDevice",
        "stage stage-1 asks for a GPU, but none of 1 node that it may run on has one: set device to CPU, or add a node "
        "with GPUs",
    ),
    (
        "GPU memory", QWEN3_8B, {"count": 1, "device": "GPU"}, {}, [node("g1", 64, 12), node("c", 64)], "StageTooLarge",
        "stage stage-1 needs 14.8 GiB of GPU memory (KV for one sequence included), and the largest GPU (g1) has 12 "
        "GiB, 10.8 GiB of it usable: 4 GiB short: give it fewer layers, or use a shorter maxContextLength",
    ),
    (
        "CPUs", SMOLLM2, {"count": 1, **template(resources={"requests": {"cpu": "2500m"}})}, {},
        [node("n1", 8, cpus=Fraction(4), requested_cpus=Fraction(2))], "InsufficientCPU",
        "stage stage-1 asks for 2.5 CPUs, and the most that are free on a node that it may run on are 2 (n1): 0.5 "
        "short: lower its template's requests",
    ),
    (
        "taints", SMOLLM2, 1, {}, [node("n1", 8, taints=GPU_TAINT), node("n2", 8, schedulable=False)], "NoEligibleNode",
        "the End Model may run on none of 2 nodes (n1: taint gpu:NoSchedule; n2: not ready or cordoned): correct its "
        "template's nodeSelector, affinity or tolerations, or the nodes",
    ),
    (
        "a limit below need", SMOLLM2, {"count": 1, **template(resources={"limits": {"memory": "900Mi"}})}, {},
        [node("n1", 8)], "LimitTooSmall",
        "stage stage-1 needs 1.2 GiB (weights, overhead and KV for one sequence), and its template limits memory to "
        "900 MiB: 320 MiB short: raise limits.memory or leave it out, give it fewer layers, or use a shorter "
        "maxContextLength",
    ),
    (
        "a request above its limit", SMOLLM2,
        {"count": 1, **template(resources={"requests": {"cpu": 2}, "limits": {"cpu": "1500m"}})}, {}, [],
        "InvalidTemplate",
        "stage stage-1: its template requests 2 of cpu and limits it to 1500m: a request is at most its limit",
    ),
    (
        "an extended resource that is only requested", SMOLLM2,
        {"count": 1, **template(resources={"requests": {"nvidia.com/gpu": 1}})}, {}, [], "InvalidTemplate",
        "stage stage-1: nvidia.com/gpu is an extended resource: name it under limits, and under requests the same "
        "or not",
    ),
    (
        "a GPU device without a GPU", SMOLLM2,
        {"count": 1, "device": "GPU", **template(resources={"limits": {"nvidia.com/gpu": 0}})}, {}, [],
        "InvalidTemplate",
        "stage stage-1 computes on a GPU, and its template limits nvidia.com/gpu to 0: use 1, or leave it out",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "stages", "more", "nodes", "reason", "message"), [row[1:] for row in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_a_pipe_that_cannot_fit_says_what_is_short_and_by_how_much(
    model: ModelFacts, stages: Any, more: dict[str, Any], nodes: list[Node], reason: str, message: str
) -> None:
    with pytest.raises(PlanError) as refused:
        plan(spec(stages, **more), model, nodes)

    assert (refused.value.reason, refused.value.message) == (reason, message)


def test_a_limit_in_the_template_is_a_budget_for_kv() -> None:
    stages = {"count": 1, **template(resources={"limits": {"memory": "2Gi"}})}

    planned = plan(spec(stages), SMOLLM2)

    assert planned.kv_limited_by == "stage-1"
    assert planned.stages[0].memory_request_bytes <= 2 * GIB
    lower = {"count": 1, **template(resources={"limits": {"memory": "1500Mi"}})}
    assert plan(spec(lower), SMOLLM2, (), planned).stages[0].memory_request_bytes <= 1500 * 2**20
    assert plan(spec({"count": 1, **template(nodeSelector={"a": "b"})}), SMOLLM2, (), planned) is planned


def test_a_member_asks_for_what_it_needs_and_on_a_gpu_for_the_host() -> None:
    planned = plan(spec([{"name": "gpu", "layers": 20, "device": "GPU"}, {"name": "cpu"}]), QWEN3_8B)

    gpu, cpu = planned.stages
    need = cpu.weight_bytes + cpu.kv_bytes + cpu.overhead_bytes
    assert need <= cpu.memory_request_bytes < need + 2**20
    assert gpu.memory_request_bytes == 2 * GIB
    assert planned.end_model.memory_request_bytes > planned.end_model.weight_bytes


def test_nodes_are_outside_the_hash_and_inside_the_file() -> None:
    known, unknown = plan(spec(1), SMOLLM2, [node("n1", 64)]), plan(spec(1), SMOLLM2)

    assert known.hash == unknown.hash
    assert Plan.from_json(known.to_json()) == known
    former = unknown.to_json()
    for part in (former["end_model"], *former["stages"]):
        del part["node"], part["memory_request_bytes"]
    assert Plan.from_json(former).stages[0].node is None


def test_every_stage_says_why_it_prefers_its_node() -> None:
    planned = plan(spec(2), SMOLLM2, [node("n1", 8), node("n2", 8)])

    assert planned.stages[1].reason.endswith(
        "; prefers n2: 8 GiB free for its 2.2 GiB, no other member of the pipe there"
    )
    assert planned.reasons[-1] == (
        "Every member fits on 2 nodes by what is free there; nodes are preferences, and the scheduler decides."
    )


def test_gpus_of_unknown_memory_are_named() -> None:
    reasons = plan(spec(GPUS), QWEN3_8B, [unlabelled("g", 32, 2)]).reasons

    assert reasons[-1].startswith("No label nvidia.com/gpu.memory states the memory of the GPUs for stage-1, stage-2:")


def test_a_second_replica_keeps_off_the_first_ones_nodes() -> None:
    nodes = [node(name, 8) for name in ("n1", "n2", "n3", "n4")]
    asked = spec(1, replicas=2)
    planned = plan(asked, SMOLLM2, nodes)

    first, second = (place(planned, asked, nodes, replica=replica) for replica in (0, 1))

    assert first == {"end-model": planned.end_model.node, "stage-1": planned.stages[0].node}
    assert set(first.values()) | set(second.values()) == {"n1", "n2", "n3", "n4"}


def test_a_replica_without_room_has_no_preference() -> None:
    asked = spec(1)
    planned = plan(asked, SMOLLM2, [node("n1", 8)])

    assert place(planned, asked, [node("n1", 2)], replica=5) == {}
    assert place(planned, asked, [], replica=1) == {}


def test_sixteen_replicas_of_many_stages_on_many_nodes_are_placed_at_once() -> None:
    nodes = [node(f"n{place:03}", 16) for place in range(300)]

    planned = plan(spec(24, replicas=16), QWEN3_8B, nodes)

    assert len({stage.node for stage in planned.stages}) == 24


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 24), min_size=1, max_size=5),
    count=st.integers(1, 5),
    replicas=st.integers(0, 3),
)
def test_what_is_planned_fits_where_it_is_preferred(sizes: list[int], count: int, replicas: int) -> None:
    nodes = [node(f"n{place}", size) for place, size in enumerate(sizes)]
    asked = spec(count, replicas=replicas)
    try:
        planned = plan(asked, QWEN3_8B, nodes)
    except PlanError:
        return  # what is said then is the refusals' test

    left = {each.name: each.memory_bytes for each in nodes}
    requests = {stage.name: stage.memory_request_bytes for stage in planned.stages}
    requests["end-model"] = planned.end_model.memory_request_bytes
    for name, chosen in place(planned, asked, nodes, replica=0).items():
        left[chosen] -= requests[name]
    assert min(left.values()) >= 0
    assert sum(len(stage.layers) for stage in planned.stages) == 35
