"""plan(spec, facts, nodes, current) → Plan, in three steps: check the spec (`checks`), split the layers (`split`), and
size the members (`assembly`). Pure; the rules are in docs/reference.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from languagepipes_api.facts import ModelFacts
from languagepipes_api.names import WIRE_VERSION
from languagepipes_api.plan import EndModelAssignment, Plan, StageAssignment
from languagepipes_api.spec import PipeSpec

from languagepipes_operator.planning.assembly import assemble
from languagepipes_operator.planning.checks import check_model, check_templates, end_ranges
from languagepipes_operator.planning.errors import SHORTAGES, PlanError
from languagepipes_operator.planning.memory import Sizes
from languagepipes_operator.planning.nodes import Node
from languagepipes_operator.planning.placement import Packed, Unpacked, pack
from languagepipes_operator.planning.requests import MemberRequest, memory_limit_bytes
from languagepipes_operator.planning.split import fit_to_nodes, shares_of
from languagepipes_operator.planning.stages import END_MODEL, templates, title_of, wanted


def plan(spec: PipeSpec, facts: ModelFacts, nodes: Sequence[Node] = (), current: Plan | None = None) -> Plan:
    """Who runs which layers. `current` comes back unchanged while it satisfies the spec: nodes alone change
    nothing.

    nodes: what was observed, one machine or a cluster's nodes; empty where nothing can be, and then only the spec's own
    budgets limit. All replicas share the plan: on known nodes of a cluster every one of `replicas` must fit, and `node`
    of each assignment is the first replica's (`place` has the others'). Raises PlanError.
    """
    check_templates(spec)
    if current is not None and satisfies(current, spec, facts):
        return current
    check_model(spec, facts)
    local, middle, tail = end_ranges(spec, facts)
    sizes = Sizes(
        facts,
        spec.model.dtype,
        spec.model.max_context_length,
        ring_members=spec.stages.size + 1,
        quantization=spec.model.quantization,
    )
    cluster = tuple(node for node in nodes if node.kubernetes)
    machines = () if cluster else nodes
    shares = shares_of(spec, sizes, middle, machines)
    if cluster and spec.stages.items is None:
        shares = fit_to_nodes(spec, sizes, local, tail, shares, cluster)
    try:
        return assemble(spec, sizes, local, tail, shares, machines, cluster)
    except PlanError as refusal:
        if not (cluster and spec.placement.allow_pending and refusal.reason in SHORTAGES):
            raise
        # What the spec itself says is still to hold: its own budgets refuse as they do without nodes.
        made = assemble(spec, sizes, local, tail, shares_of(spec, sizes, middle, ()), (), ())
        wait = f"Not all members fit on the nodes of today, and pods wait for others (allowPending): {refusal.message}"
        return replace(made, reasons=(*made.reasons, wait))


def place(planned: Plan, spec: PipeSpec, nodes: Sequence[Node], *, replica: int) -> dict[str, str]:
    """The node on which each member of a replica (0 is the first) would rather run, by the member's name ("end-model",
    or the stage's); a member without preference is not in it.

    Preferences only, for pods that are about to be made: asked again when nodes have changed, it says something else,
    so it must not count among what makes a running pod another. The first replica's are the plan's own; later replicas
    avoid the nodes of earlier ones where they can, and have no preference where not all fit. nodes: without what the
    pipe's own pods request. Pure; raises nothing.
    """
    if replica == 0:
        chosen = {stage.name: stage.node for stage in planned.stages} | {END_MODEL: planned.end_model.node}
        return {name: node for name, node in chosen.items() if node is not None}
    cluster = [node for node in nodes if node.kubernetes]
    packed = pack(_requests(planned, spec), cluster, replicas=replica + 1) if cluster else None
    if not isinstance(packed, Packed):
        return {}
    return {
        name: assignment.node for name, assignment in packed.assignments[replica].items() if assignment.node is not None
    }


def how_many_fit(planned: Plan, spec: PipeSpec, nodes: Sequence[Node], *, more: int) -> tuple[int, PlanError | None]:
    """How many of `more` further replicas of the plan find room on these nodes, and what is short for the next one.

    nodes: with the pods of the replicas that there are. Where no nodes are known, all do. Pure.
    """
    cluster = [node for node in nodes if node.kubernetes]
    members = _requests(planned, spec)
    error = None
    for count in range(more, 0, -1):
        packed = pack(members, cluster, replicas=count) if cluster else None
        if not isinstance(packed, Unpacked):
            return count, error
        error = packed.error  # in the end, that of the least that does not fit
    return 0, error


def _requests(planned: Plan, spec: PipeSpec) -> list[MemberRequest]:
    by_name = templates(spec)
    return [
        MemberRequest.of(
            name,
            title_of(name),
            part.device,
            by_name.get(name),
            need_bytes=part.weight_bytes + part.kv_bytes + part.overhead_bytes,
            kv_bytes=part.kv_bytes,
        )
        for name, part in _parts(planned)
    ]


def _parts(planned: Plan) -> list[tuple[str, EndModelAssignment | StageAssignment]]:
    return [(END_MODEL, planned.end_model), *((stage.name, stage) for stage in planned.stages)]


def satisfies(current: Plan, spec: PipeSpec, facts: ModelFacts) -> bool:
    """Whether `current` is still a plan for this spec and model. What was observed of nodes plays no part."""
    end = current.end_model
    same_model = (
        current.model_revision == facts.revision
        and current.family == facts.family
        and current.layer_count == facts.layer_count
        and current.hidden_size == facts.hidden_size
        and current.wire_version == WIRE_VERSION
        and current.dtype == spec.model.dtype
        and current.quantization == spec.model.quantization
        and current.max_context_length == spec.model.max_context_length
    )
    same_ends = (
        len(end.local_layers) == spec.end_model.local_layers
        and len(end.tail_layers) == spec.end_model.tail_layers
        and end.device == spec.end_model.device
    )
    stages = wanted(spec)
    return (
        same_model
        and same_ends
        and limits_hold(current, spec)
        and len(stages) == len(current.stages)
        and all(
            stage.name == assigned.name
            and stage.device == assigned.device
            and stage.memory_bytes == assigned.memory_budget_bytes
            and (stage.layers is None or stage.layers == len(assigned.layers))
            for stage, assigned in zip(stages, current.stages, strict=True)
        )
    )


def limits_hold(current: Plan, spec: PipeSpec) -> bool:
    """Whether every member on a CPU fits into its template's memory limit, which is a budget too."""
    by_name = templates(spec)
    return all(
        part.weight_bytes + part.kv_bytes + part.overhead_bytes <= limit
        for name, part in _parts(current)
        if part.device == "CPU" and (limit := memory_limit_bytes(by_name.get(name))) is not None
    )
