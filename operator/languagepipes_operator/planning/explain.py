"""Why a plan is as it is, in sentences for people, and which member is the slowest. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from languagepipes_api.facts import ModelFacts
from languagepipes_api.plan import EndModelAssignment, StageAssignment
from languagepipes_api.quantity import format_bytes
from languagepipes_api.spec import PipeSpec

from languagepipes_operator.planning.kubernetes_nodes import GPU_MEMORY_LABEL
from languagepipes_operator.planning.kv import KvPlan
from languagepipes_operator.planning.memory import ASSUMED_BANDWIDTH, KV_BLOCK_TOKENS, Sizes
from languagepipes_operator.planning.nodes import Node
from languagepipes_operator.planning.placement import Assignment
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
        head = facts.head_parameters * sizes.dtype_bytes
        yield (
            f"The End Model is the slowest member: it reads {format_bytes(end_model.step_bytes)} a step of "
            f"{format_bytes(whole)} in all, {format_bytes(head)} of it the head. More stages make nothing "
            f"faster; "
            "fewer localLayers and tailLayers would."
        )
    resident = sum(layer.parameters for layer in facts.layers)
    active = sum(layer.active_parameters for layer in facts.layers)
    if active < resident:
        yield (
            f"Mixture of experts: layers hold {format_bytes(resident * sizes.dtype_bytes)}, a token reads "
            f"{format_bytes(active * sizes.dtype_bytes)}; the split follows what is read."
        )
    if facts.stored_dtype != sizes.dtype:
        narrows = sizes.dtype == "float16" and facts.stored_dtype in ("bfloat16", "float32")
        risk = "; float16 ends at 65504: larger weights are refused, larger activations overflow" if narrows else ""
        yield f"Stored as {facts.stored_dtype}, served as {sizes.dtype}{risk}."


def node_reasons(
    spec: PipeSpec, ring_members: Sequence[RingMember], assignments: Mapping[str, Assignment], nodes: Sequence[Node]
) -> Iterator[str]:
    """Of a plan on known nodes of a cluster."""
    replicas = f" of {spec.replicas} replicas" if spec.replicas > 1 else ""
    yield (
        f"Every member{replicas} fits on {len(nodes)} node{'' if len(nodes) == 1 else 's'} by what is free there; "
        "nodes "
        "are preferences, and the scheduler decides."
    )
    by_name = {node.name: node for node in nodes}
    unknown = [
        ring_member.name
        for ring_member in ring_members
        if ring_member.device == "GPU"
        and (node := assignments[ring_member.name].node)
        and not by_name[node].gpu_memory_bytes
    ]
    if unknown:
        yield (
            f"No label {GPU_MEMORY_LABEL} states the memory of the GPUs for {', '.join(unknown)}: whether weights and "
            "KV fit there shows when they start."
        )
