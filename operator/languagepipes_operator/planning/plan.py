"""plan(spec, facts, nodes, current) → Plan: check, split, size, say why. Pure; the rules are in
docs/reference.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from languagepipes_api.facts import ModelFacts
from languagepipes_api.names import WIRE_VERSION
from languagepipes_api.plan import Device, EndModelAssignment, LayerRange, Plan, StageAssignment
from languagepipes_api.quantity import format_bytes
from languagepipes_api.spec import PipeSpec, StageSpec
from languagepipes_api.template import PodTemplate

from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.planning.kubernetes_nodes import GPU_MEMORY_LABEL
from languagepipes_operator.planning.kv import KvPlan, RingMember, kv_on_nodes, kv_plan, layers_text, memories_of
from languagepipes_operator.planning.layers import Slot, longest, split
from languagepipes_operator.planning.memory import (
    ASSUMED_BANDWIDTH,
    FRAME_TOKENS,
    KV_BLOCK_TOKENS,
    USABLE_FRACTION,
    Sizes,
)
from languagepipes_operator.planning.nodes import Node
from languagepipes_operator.planning.placement import Assignment, Member, Packed, pack, rooms
from languagepipes_operator.planning.requests import (
    check_limit_holds,
    check_template,
    memory_limit_bytes,
    memory_request_bytes,
)
from languagepipes_operator.planning.stages import END_MODEL, templates, title_of, wanted


@dataclass(frozen=True)
class _Share:
    """A stage with its range, and why."""

    stage: StageSpec
    layers: LayerRange
    reason: str


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
    _check_model(spec, facts)
    local, middle, tail = _ends(spec, facts)
    sizes = Sizes(facts, spec.model.dtype, spec.model.max_context_length, ring_members=spec.stages.size + 1)
    cluster = tuple(node for node in nodes if node.kubernetes)
    machines = () if cluster else nodes
    shares = _shares(spec, sizes, middle, machines)
    if cluster and spec.stages.items is None:
        shares = _fitting(spec, sizes, local, tail, shares, cluster)
    return _assemble(spec, sizes, local, tail, shares, machines, cluster)


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
    by_name = templates(spec)
    members = [
        Member.of(
            name,
            title_of(name),
            part.device,
            by_name.get(name),
            need_bytes=part.weight_bytes + part.kv_bytes + part.overhead_bytes,
            kv_bytes=part.kv_bytes,
        )
        for name, part in _parts(planned)
    ]
    packed = pack(members, cluster, replicas=replica + 1) if cluster else None
    if not isinstance(packed, Packed):
        return {}
    return {
        name: assignment.node for name, assignment in packed.assignments[replica].items() if assignment.node is not None
    }


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


# 1. Does the spec suit the model at all?


def check_templates(spec: PipeSpec) -> None:
    """Whether pods may be made from them at all, whatever the plan. Raises PlanError(InvalidTemplate)."""
    check_template(spec.end_model.template, spec.end_model.device, title_of(END_MODEL))
    for stage in wanted(spec):
        check_template(stage.template, stage.device, title_of(stage.name))


def _check_model(spec: PipeSpec, facts: ModelFacts) -> None:
    asked = spec.model.max_context_length
    if asked > facts.max_position:
        raise PlanError(
            "ContextTooLong",
            f"maxContextLength is {asked}, and the model has {facts.max_position} positions: "
            f"set spec.model.maxContextLength to at most {facts.max_position}",
        )


def _ends(spec: PipeSpec, facts: ModelFacts) -> tuple[LayerRange, LayerRange, LayerRange]:
    """The End Model's front, what is left for stages, and the End Model's back."""
    local, tail, layers = spec.end_model.local_layers, spec.end_model.tail_layers, facts.layer_count
    if local + tail >= layers:
        raise PlanError(
            "NoLayersForStages",
            f"localLayers {local} + tailLayers {tail} = {local + tail} of {layers} layers: none is left for "
            f"the "
            f"stages; their sum must be at most {layers - 1}",
        )
    if layers - local - tail < spec.stages.size:
        raise PlanError(
            "TooManyStages",
            f"{spec.stages.size} stages, but {layers} layers less {local + tail} at the End Model leave "
            f"{layers - local - tail}: take at most {layers - local - tail} stages",
        )
    return LayerRange(0, local), LayerRange(local, layers - tail), LayerRange(layers - tail, layers)


# 2. Which stage gets which layers?


def _shares(spec: PipeSpec, sizes: Sizes, middle: LayerRange, nodes: Sequence[Node]) -> tuple[_Share, ...]:
    stages = wanted(spec)
    if spec.stages.items is None:
        return _even(stages, sizes, middle, nodes)
    for stage in stages:
        _check_budget_holds_a_layer(stage, sizes, middle)
    if any(stage.open for stage in stages):
        return _with_rest(stages, sizes, middle)
    return _sized(stages, sizes, middle)


def _even(stages: tuple[StageSpec, ...], sizes: Sizes, middle: LayerRange, nodes: Sequence[Node]) -> tuple[_Share, ...]:
    """A count: the heaviest stage as light as can be; on known machines, no stage larger than the largest of
    them.
    """
    device = stages[0].device
    largest = max(memories_of(nodes, device), default=None)

    def fits(start: int, stop: int) -> bool:
        if largest is None:
            return True
        return sizes.stage_need_bytes(LayerRange(start, stop), device) <= largest * USABLE_FRACTION[device]

    costs = _costs(sizes, middle)
    # Where nothing fits, the plain split goes on: the sizing that follows refuses it with the stage and its
    # bytes.
    ranges = split(costs, [Slot(fits=fits)] * len(stages), first=middle.start)
    ranges = ranges or split(costs, [Slot()] * len(stages), first=middle.start) or ()
    heaviest = format_bytes(max(map(sizes.step_bytes, ranges)))
    return tuple(
        _Share(
            stage,
            layers,
            f"{len(layers)} of {len(middle)} layers: no split over {len(stages)} has a heaviest stage below "
            f"{heaviest} a step",
        )
        for stage, layers in zip(stages, ranges, strict=True)
    )


def _with_rest(stages: tuple[StageSpec, ...], sizes: Sizes, middle: LayerRange) -> tuple[_Share, ...]:
    """A list with one open entry: the others take theirs from both ends, and it takes what is left."""
    rest = next(place for place, stage in enumerate(stages) if stage.open)
    free = middle
    taken: dict[int, LayerRange] = {}
    order = [*range(rest), *range(len(stages) - 1, rest, -1)]
    for done, place in enumerate(order):
        stage, from_right = stages[place], place > rest
        # Every stage still to come has its layers, or at least one.
        most = len(free) - 1 - sum(stages[later].layers or 1 for later in order[done + 1 :])
        count = stage.layers or longest(free, most=most, fits=_fits(stage, sizes), from_right=from_right)
        if count > most:
            raise _wrong_sum(stages, sizes, middle)
        if count < 1:
            edge = free.stop - 1 if from_right else free.start
            raise _over_budget(stage, LayerRange(edge, edge + 1), sizes)
        cut = free.stop - count if from_right else free.start + count
        low, high = LayerRange(free.start, cut), LayerRange(cut, free.stop)
        taken[place], free = (high, low) if from_right else (low, high)
    taken[rest] = free
    return tuple(_Share(stage, taken[place], _why(stage, taken[place], sizes)) for place, stage in enumerate(stages))


def _sized(stages: tuple[StageSpec, ...], sizes: Sizes, middle: LayerRange) -> tuple[_Share, ...]:
    """A list of layers and budgets without an open entry: evened out among the budgets, if they hold more
    than enough.
    """
    slots = [Slot(exactly=stage.layers, fits=_fits(stage, sizes)) for stage in stages]
    ranges = split(_costs(sizes, middle), slots, first=middle.start)
    if ranges is None:
        raise _wrong_sum(stages, sizes, middle)
    return tuple(
        _Share(stage, layers, _why(stage, layers, sizes)) for stage, layers in zip(stages, ranges, strict=True)
    )


def _costs(sizes: Sizes, layers: LayerRange) -> list[int]:
    return [sizes.step_bytes(LayerRange(layer, layer + 1)) for layer in range(layers.start, layers.stop)]


def _fits(stage: StageSpec, sizes: Sizes) -> Callable[[int, int], bool]:
    budget, device = stage.memory_bytes, stage.device

    def fits(start: int, stop: int) -> bool:
        return budget is None or sizes.stage_need_bytes(LayerRange(start, stop), device) <= budget

    return fits


def _why(stage: StageSpec, layers: LayerRange, sizes: Sizes) -> str:
    if stage.layers is not None:
        return f"layers: {stage.layers}, as asked"
    if stage.memory_bytes is not None:
        need = format_bytes(sizes.stage_need_bytes(layers, stage.device))
        return (
            f"{layers_text(len(layers))} of the budget of {format_bytes(stage.memory_bytes)} "
            f"({need} with KV for one sequence of {sizes.max_context_length} tokens)"
        )
    return f"takes the rest: {layers_text(len(layers))}"


def _check_budget_holds_a_layer(stage: StageSpec, sizes: Sizes, middle: LayerRange) -> None:
    if stage.memory_bytes is None:
        return
    lightest = min((LayerRange(layer, layer + 1) for layer in range(middle.start, middle.stop)), key=sizes.weight_bytes)
    if sizes.stage_need_bytes(lightest, stage.device) > stage.memory_bytes:
        raise _over_budget(stage, lightest, sizes)


def _over_budget(stage: StageSpec, layer: LayerRange, sizes: Sizes) -> PlanError:
    return PlanError(
        "StageOverBudget",
        f"stage {stage.name}: 1 layer needs {format_bytes(sizes.stage_need_bytes(layer, stage.device))} "
        f"(weights {format_bytes(sizes.weight_bytes(layer))}, KV for one sequence of {sizes.max_context_length} "
        f"tokens {format_bytes(sizes.kv_sequence_bytes(1))}, overhead "
        f"{format_bytes(sizes.overhead_bytes(stage.device, end_model=False))}), budget "
        f"{format_bytes(stage.memory_bytes or 0)}: raise its memory or lower maxContextLength",
    )


def _wrong_sum(stages: tuple[StageSpec, ...], sizes: Sizes, middle: LayerRange) -> PlanError:
    """The stages of a list cannot share out the layers: too many are named, or too few can be held."""
    named = sum(stage.layers or 0 for stage in stages)
    others = [stage for stage in stages if stage.layers is None]
    at_end = sizes.facts.layer_count - len(middle)
    layers = f"{sizes.facts.layer_count} layers"
    parts = f"{at_end} at the End Model, {named} in stages"
    if named + len(others) > len(middle):
        least, more = (
            ("at least ", f", 1 or more in {', '.join(stage.name for stage in others)}") if others else ("", "")
        )
        return PlanError(
            "TooManyLayersAssigned",
            f"{layers}, {least}{at_end + named + len(others)} assigned ({parts}{more}): "
            f"name at most {len(middle) - len(others)} in stages",
        )
    if not others:
        return PlanError(
            "TooFewLayersAssigned",
            f"{layers}, {named + at_end} assigned ({parts}): name {len(middle)} in stages, or add a stage without "
            "layers and memory, which takes the rest",
        )
    held = ", ".join(
        f"{stage.name} at most {longest(middle, most=len(middle), fits=_fits(stage, sizes))} in "
        f"{format_bytes(stage.memory_bytes or 0)}"
        for stage in others
    )
    return PlanError(
        "BudgetsTooSmall",
        f"{layers}, {at_end + named} assigned ({parts}), and the budgets do not hold the other "
        f"{len(middle) - named} ({held}): raise memory, lower maxContextLength, or add a stage "
        "without layers and memory",
    )


def _fitting(
    spec: PipeSpec, sizes: Sizes, local: LayerRange, tail: LayerRange, equal: tuple[_Share, ...], nodes: Sequence[Node]
) -> tuple[_Share, ...]:
    """A count on a cluster: the equal split, or where unlike nodes cannot take it, one that they can take. If there is
    neither, the equal one goes on, and the sizing that follows refuses it with what is short.
    """
    sequence = sizes.blocks_per_sequence
    end_model, *stages = (
        ring_member.member(sequence) for ring_member in _ring_members(spec, sizes, local, tail, equal)
    )
    packed = pack([end_model, *stages], nodes, replicas=max(1, spec.replicas))
    if isinstance(packed, Packed) or len(stages) < 2:
        return equal
    device, middle = stages[0].device, LayerRange(equal[0].layers.start, equal[-1].layers.stop)
    need = packed.member.device_bytes or packed.member.memory_bytes
    replicas = max(1, spec.replicas)
    evenly = -(-len(stages) * replicas // len(nodes))
    for together, tight in product((evenly, len(stages) * replicas), (True, False)):
        caps = rooms(end_model, stages[0], nodes, stages=len(stages), replicas=replicas, tight=tight, together=together)
        slots = [Slot(fits=_within(cap, sizes, device)) for cap in caps]
        ranges = split(_costs(sizes, middle), slots, first=middle.start)
        if ranges is None:
            continue
        shares = tuple(
            _Share(
                share.stage,
                layers,
                f"{len(layers)} of {len(middle)} layers: an equal split does not fit the nodes "
                f"({packed.member.title} would need {format_bytes(need)}), this one does",
            )
            for share, layers in zip(equal, ranges, strict=True)
        )
        ring_members = _ring_members(spec, sizes, local, tail, shares)
        if isinstance(pack([each.member(sequence) for each in ring_members], nodes, replicas=replicas), Packed):
            return shares
    return equal


def _within(cap: int, sizes: Sizes, device: Device) -> Callable[[int, int], bool]:
    def fits(start: int, stop: int) -> bool:
        need = sizes.stage_need_bytes(LayerRange(start, stop), device)
        return (memory_request_bytes(device, need) if device == "CPU" else need) <= cap

    return fits


# 3. What does each member hold, and what does the ring get?


def _assemble(
    spec: PipeSpec,
    sizes: Sizes,
    local: LayerRange,
    tail: LayerRange,
    shares: Sequence[_Share],
    machines: Sequence[Node],
    cluster: Sequence[Node],
) -> Plan:
    ring_members = _ring_members(spec, sizes, local, tail, shares)
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
            replicas=max(1, spec.replicas),
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
        reason=_with_assignment(_why_end_model(spec, sizes.facts), assignments.get(END_MODEL)),
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
    slowest = _slowest(end_model, stages)
    facts = sizes.facts
    return Plan(
        model_revision=facts.revision,
        family=facts.family,
        layer_count=facts.layer_count,
        hidden_size=facts.hidden_size,
        dtype=sizes.dtype,
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
            *_reasons(sizes, kv, end_model, stages, slowest),
            *(_about_nodes(spec, ring_members, assignments, cluster) if cluster else ()),
        ),
    )


def _with_assignment(reason: str, assignment: Assignment | None) -> str:
    return reason if assignment is None else f"{reason}; {assignment.why}"


def _node_of(assignment: Assignment | None) -> str | None:
    return None if assignment is None else assignment.node


def _about_nodes(
    spec: PipeSpec, ring_members: Sequence[RingMember], assignments: Mapping[str, Assignment], nodes: Sequence[Node]
) -> Iterator[str]:
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


def _ring_members(
    spec: PipeSpec, sizes: Sizes, local: LayerRange, tail: LayerRange, shares: Sequence[_Share]
) -> list[RingMember]:
    device = spec.end_model.device
    fixed = sizes.end_weight_bytes(local, tail) + sizes.overhead_bytes(device, end_model=True)
    end_model = RingMember(
        END_MODEL,
        "the End Model",
        len(local) + len(tail),
        device,
        fixed,
        sizes.kv_block_bytes(len(local) + len(tail)),
        _budget(None, device, spec.end_model.template),
        spec.end_model.template,
    )
    stages = [
        RingMember(
            share.stage.name,
            f"stage {share.stage.name}",
            len(share.layers),
            share.stage.device,
            sizes.weight_bytes(share.layers) + sizes.overhead_bytes(share.stage.device, end_model=False),
            sizes.kv_block_bytes(len(share.layers)),
            _budget(share.stage.memory_bytes, share.stage.device, share.stage.template),
            share.stage.template,
        )
        for share in shares
    ]
    return [end_model, *stages]


def _budget(memory: int | None, device: Device, template: PodTemplate | None) -> int | None:
    """The most it may take of its device: on a CPU the container's limit counts too."""
    limit = memory_limit_bytes(template) if device == "CPU" else None
    return min((each for each in (memory, limit) if each is not None), default=None)


def _why_end_model(spec: PipeSpec, facts: ModelFacts) -> str:
    ends = f"the first {_of_an_end(spec.end_model.local_layers)}"
    if spec.end_model.tail_layers:
        ends += f" and the last {_of_an_end(spec.end_model.tail_layers)}"
    tied = "one matrix as embedding and head" if facts.tied_embeddings else "embedding and head"
    return f"{ends}, as asked; {tied}, and the norm"


def _of_an_end(count: int) -> str:
    return "layer" if count == 1 else f"{count} layers"


def _slowest(end_model: EndModelAssignment, stages: Sequence[StageAssignment]) -> str:
    """The member whose bytes take the longest to read; of equals, the first in the ring."""
    seconds = {END_MODEL: end_model.step_bytes / ASSUMED_BANDWIDTH[end_model.device]}
    seconds |= {stage.name: stage.step_bytes / ASSUMED_BANDWIDTH[stage.device] for stage in stages}
    return max(seconds, key=lambda name: seconds[name])


def _reasons(
    sizes: Sizes, kv: KvPlan, end_model: EndModelAssignment, stages: Sequence[StageAssignment], slowest: str
) -> Iterator[str]:
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
