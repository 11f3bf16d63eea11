"""Why a plan is as it is, in sentences for people, and which member is the slowest. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from languagepipes_api.facts import ModelFacts, QuantisedFacts
from languagepipes_api.plan import EndModelAssignment, LayerRange, StageAssignment
from languagepipes_api.quantity import format_bytes
from languagepipes_api.spec import PipeSpec

from languagepipes_operator.planning.kubernetes_nodes import GPU_MEMORY_LABEL
from languagepipes_operator.planning.kv import KvPlan
from languagepipes_operator.planning.memory import ASSUMED_BANDWIDTH, KV_BLOCK_TOKENS, Sizes
from languagepipes_operator.planning.nodes import GPU_RESOURCE, Node
from languagepipes_operator.planning.placement import Assignment
from languagepipes_operator.planning.requests import gpu_resource
from languagepipes_operator.planning.ring_members import RingMember
from languagepipes_operator.planning.stages import END_MODEL


def end_model_reason(spec: PipeSpec, facts: ModelFacts) -> str:
    """What the End Model holds."""
    ends = f"the first {_of_an_end(spec.end_model.local_layers)}"
    if spec.end_model.tail_layers:
        ends += f" and the last {_of_an_end(spec.end_model.tail_layers)}"
    tied = "one matrix as embedding and head" if facts.tied_embeddings else "embedding and head"
    return f"{ends}, as asked; {tied}, and the norm"


def _of_an_end(count: int) -> str:
    return "layer" if count == 1 else f"{count} layers"


def slowest_member(end_model: EndModelAssignment, stages: Sequence[StageAssignment]) -> str:
    """The member whose bytes take the longest to read; of equals, the first in the ring."""
    seconds = {END_MODEL: end_model.step_bytes / ASSUMED_BANDWIDTH[end_model.device]}
    seconds |= {stage.name: stage.step_bytes / ASSUMED_BANDWIDTH[stage.device] for stage in stages}
    return max(seconds, key=lambda name: seconds[name])


def plan_reasons(
    sizes: Sizes, kv: KvPlan, end_model: EndModelAssignment, stages: Sequence[StageAssignment], slowest: str
) -> Iterator[str]:
    """Of the whole plan: KV, the slowest member, experts, dtype."""
    facts = sizes.facts
    sequences = kv.blocks // sizes.blocks_per_sequence
    yield (
        f"KV for {sequences} sequence{'' if sequences == 1 else 's'} of {sizes.max_context_length} tokens "
        f"({kv.blocks} blocks of {KV_BLOCK_TOKENS} tokens): {kv.reason}."
    )
    whole = end_model.step_bytes + sum(stage.step_bytes for stage in stages)
    if slowest == END_MODEL:
        head = sizes.head_bytes
        yield (
            f"The End Model is the slowest member: it reads {format_bytes(end_model.step_bytes)} a step of "
            f"{format_bytes(whole)} in all, {format_bytes(head)} of it the head. More stages make nothing "
            f"faster; "
            "fewer localLayers and tailLayers would."
        )
    if any(layer.active_parameters < layer.parameters for layer in facts.layers):
        every = LayerRange(0, facts.layer_count)
        yield (
            f"Mixture of experts: layers hold {format_bytes(sizes.weight_bytes(every))}, a token reads "
            f"{format_bytes(sizes.step_bytes(every))}; the split follows what is read."
        )
    if sizes.quantised is not None:
        yield _quantised(sizes, sizes.quantised)
    if facts.stored_dtype != sizes.dtype:
        narrows = sizes.dtype == "float16" and facts.stored_dtype in ("bfloat16", "float32")
        risk = "; float16 ends at 65504: larger weights are refused, larger activations overflow" if narrows else ""
        yield f"Stored as {facts.stored_dtype}, served as {sizes.dtype}{risk}."


def _quantised(sizes: Sizes, quantised: QuantisedFacts) -> str:
    """Which bytes quantisation takes and saves; what keeps dtype; the store's own note."""
    facts = sizes.facts
    every, nothing = LayerRange(0, facts.layer_count), LayerRange(0, 0)
    plain = replace(sizes, quantization="none")
    note = f" {quantised.note}" if quantised.note else ""
    return (
        f"Quantised ({sizes.quantization}): weights take {format_bytes(sizes.end_weight_bytes(every, nothing))} in "
        f"place of {format_bytes(plain.end_weight_bytes(every, nothing))}; norms, biases, routers, KV and the wire are "
        f"{sizes.dtype}.{note}"
    )


def node_reasons(
    spec: PipeSpec, ring_members: Sequence[RingMember], assignments: Mapping[str, Assignment], nodes: Sequence[Node]
) -> Iterator[str]:
    """Of a plan on known nodes of a cluster."""
    replicas = f" of {spec.planned_replicas} replicas" if spec.planned_replicas > 1 else ""
    yield (
        f"Every member{replicas} fits on {len(nodes)} node{'' if len(nodes) == 1 else 's'} by what is free there; "
        "nodes "
        "are preferences, and the scheduler decides."
    )
    if not all(node.counts_all_pods for node in nodes):
        yield (
            "What pods of others ask for is not counted, since the operator may not list pods of all namespaces: give "
            "its service account the chart's role."
        )
    by_name = {node.name: node for node in nodes}
    unknown = [
        ring_member.name
        for ring_member in ring_members
        if ring_member.device == "GPU"
        and (node := assignments[ring_member.name].node)
        and by_name[node].gpus_of(gpu_resource(ring_member.template)).memory_bytes is None
    ]
    sharing = {
        found.name: found.gpu_sharing
        for ring_member in ring_members
        if ring_member.device == "GPU"
        and gpu_resource(ring_member.template) == GPU_RESOURCE
        and (found := by_name.get(assignments[ring_member.name].node or "")) is not None
        and found.gpu_sharing > 1
    }
    if sharing:
        listed = ", ".join(f"{name}: {count}" for name, count in sorted(sharing.items()))
        yield (
            f"Pods share each GPU ({listed}), and nothing keeps them apart: each is planned with its part of the "
            "GPU's memory."
        )
    if unknown:
        yield (
            f"No label {GPU_MEMORY_LABEL} states the memory of the GPUs for {', '.join(unknown)}: whether weights and "
            "KV fit there shows when they start."
        )
