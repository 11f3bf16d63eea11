"""From stages with their layers to the plan: what each member holds, how many KV blocks the ring gets, which nodes.

Knows neither how layers were split nor why; the sentences are in `explain`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from languagepipes_api.plan import EndModelAssignment, LayerRange, Plan, StageAssignment
from languagepipes_api.spec import PipeSpec

from languagepipes_operator.planning.explain import end_model_reason, node_reasons, plan_reasons, slowest_member
from languagepipes_operator.planning.kv import kv_on_nodes, kv_plan
from languagepipes_operator.planning.memory import FRAME_TOKENS, KV_BLOCK_TOKENS, Sizes
from languagepipes_operator.planning.nodes import Node
from languagepipes_operator.planning.placement import Assignment
from languagepipes_operator.planning.requests import check_limit_holds, memory_request_bytes
from languagepipes_operator.planning.ring_members import Share, ring_members_of
from languagepipes_operator.planning.stages import END_MODEL


def assemble(
    spec: PipeSpec,
    sizes: Sizes,
    local: LayerRange,
    tail: LayerRange,
    shares: Sequence[Share],
    machines: Sequence[Node],
    cluster: Sequence[Node],
) -> Plan:
    """machines: what `languagepipes up` runs on; cluster: a cluster's nodes; one of them empty. Raises PlanError."""
    ring_members = ring_members_of(spec, sizes, local, tail, shares)
    for ring_member in ring_members:
        if ring_member.device == "CPU":
            need = ring_member.fixed_bytes + sizes.blocks_per_sequence * ring_member.block_bytes
            check_limit_holds(ring_member.template, ring_member.title, need)
    kv = kv_plan(
        ring_members,
        blocks_per_sequence=sizes.blocks_per_sequence,
        max_concurrent_requests=spec.server.max_concurrent_requests,
        nodes=machines,
    )
    assignments: Mapping[str, Assignment] = {}
    if cluster:
        kv, packed = kv_on_nodes(
            ring_members,
            kv,
            blocks_per_sequence=sizes.blocks_per_sequence,
            nodes=cluster,
            replicas=spec.planned_replicas,
        )
        assignments = packed.assignments[0]
    need_bytes = {each.name: each.fixed_bytes + kv.blocks * each.block_bytes for each in ring_members}
    end_model = EndModelAssignment(
        local_layers=local,
        tail_layers=tail,
        device=spec.end_model.device,
        weight_bytes=sizes.end_weight_bytes(local, tail),
        step_bytes=sizes.end_step_bytes(local, tail),
        kv_bytes=kv.blocks * sizes.kv_block_bytes(len(local) + len(tail)),
        overhead_bytes=sizes.overhead_bytes(spec.end_model.device, end_model=True),
        reason=_with_assignment(end_model_reason(spec, sizes.facts), assignments.get(END_MODEL)),
        node=_node_of(assignments.get(END_MODEL)),
        memory_request_bytes=memory_request_bytes(spec.end_model.device, need_bytes[END_MODEL]),
    )
    stages = tuple(
        StageAssignment(
            name=share.stage.name,
            layers=share.layers,
            device=share.stage.device,
            weight_bytes=sizes.weight_bytes(share.layers),
            step_bytes=sizes.step_bytes(share.layers),
            kv_bytes=kv.blocks * sizes.kv_block_bytes(len(share.layers)),
            overhead_bytes=sizes.overhead_bytes(share.stage.device, end_model=False),
            memory_budget_bytes=share.stage.memory_bytes,
            reason=_with_assignment(share.reason, assignments.get(share.stage.name)),
            node=_node_of(assignments.get(share.stage.name)),
            memory_request_bytes=memory_request_bytes(share.stage.device, need_bytes[share.stage.name]),
        )
        for share in shares
    )
    slowest = slowest_member(end_model, stages)
    facts = sizes.facts
    return Plan(
        model_revision=facts.revision,
        family=facts.family,
        layer_count=facts.layer_count,
        hidden_size=facts.hidden_size,
        dtype=sizes.dtype,
        quantization=sizes.quantization,
        end_model=end_model,
        stages=stages,
        max_context_length=sizes.max_context_length,
        kv_block_tokens=KV_BLOCK_TOKENS,
        kv_blocks=kv.blocks,
        kv_limited_by=kv.limited_by,
        max_sequences=kv.blocks // sizes.blocks_per_sequence,
        frame_tokens=FRAME_TOKENS,
        frames_in_flight=sizes.frames_in_flight,
        slowest_station=slowest,
        reasons=(
            *plan_reasons(sizes, kv, end_model, stages, slowest),
            *(node_reasons(spec, ring_members, assignments, cluster) if cluster else ()),
        ),
    )


def _with_assignment(reason: str, assignment: Assignment | None) -> str:
    return reason if assignment is None else f"{reason}; {assignment.why}"


def _node_of(assignment: Assignment | None) -> str | None:
    return None if assignment is None else assignment.node
