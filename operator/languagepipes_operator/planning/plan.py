"""plan(spec, facts, nodes, current) → Plan: check, split, size, say why. Pure; the rules are in
docs/reference.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from languagepipes_api.facts import ModelFacts
from languagepipes_api.names import WIRE_VERSION
from languagepipes_api.plan import Device, EndModelAssignment, LayerRange, Plan, StageAssignment
from languagepipes_api.quantity import format_bytes
from languagepipes_api.spec import PipeSpec, StageSpec

from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.planning.kv import KvPlan, Station, kv_plan, layers_text, memories_of
from languagepipes_operator.planning.layers import Slot, longest, split
from languagepipes_operator.planning.memory import (
    ASSUMED_BANDWIDTH,
    FRAME_TOKENS,
    KV_BLOCK_TOKENS,
    USABLE_FRACTION,
    Sizes,
)
from languagepipes_operator.planning.nodes import Node

END_MODEL = "end-model"


@dataclass(frozen=True)
class _Share:
    """A stage with its range, and why."""

    stage: StageSpec
    layers: LayerRange
    reason: str


def plan(spec: PipeSpec, facts: ModelFacts, nodes: Sequence[Node] = (), current: Plan | None = None) -> Plan:
    """Who runs which layers. `current` comes back unchanged while it satisfies the spec: nodes alone change
    nothing.

    nodes: what was observed; empty where nothing can be, and then only the spec's own budgets limit. Raises
    PlanError.
    """
    if current is not None and satisfies(current, spec, facts):
        return current
    _check_model(spec, facts)
    local, middle, tail = _ends(spec, facts)
    sizes = Sizes(facts, spec.model.dtype, spec.model.max_context_length, stations=spec.stages.size + 1)
    shares = _shares(spec, sizes, middle, nodes)
    return _assemble(spec, sizes, local, tail, shares, nodes)


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
    stages = _wanted(spec)
    return (
        same_model
        and same_ends
        and len(stages) == len(current.stages)
        and all(
            stage.name == assigned.name
            and stage.device == assigned.device
            and stage.memory_bytes == assigned.memory_budget_bytes
            and (stage.layers is None or stage.layers == len(assigned.layers))
            for stage, assigned in zip(stages, current.stages, strict=True)
        )
    )


def _wanted(spec: PipeSpec) -> tuple[StageSpec, ...]:
    """The stages, whichever way they were written; a count's are named by their place."""
    if spec.stages.items is not None:
        return spec.stages.items
    device: Device = spec.stages.device or "CPU"
    return tuple(StageSpec(name=f"stage-{place}", device=device) for place in range(1, spec.stages.size + 1))


# 1. Does the spec suit the model at all?


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
    stages = _wanted(spec)
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


# 3. What does each station hold, and what does the ring get?


def _assemble(
    spec: PipeSpec,
    sizes: Sizes,
    local: LayerRange,
    tail: LayerRange,
    shares: Sequence[_Share],
    nodes: Sequence[Node],
) -> Plan:
    stations = _stations(spec, sizes, local, tail, shares)
    kv = kv_plan(
        stations,
        blocks_per_sequence=sizes.blocks_per_sequence,
        max_concurrent_requests=spec.server.max_concurrent_requests,
        nodes=nodes,
    )
    end_model = EndModelAssignment(
        local_layers=local,
        tail_layers=tail,
        device=spec.end_model.device,
        weight_bytes=sizes.end_weight_bytes(local, tail),
        step_bytes=sizes.end_step_bytes(local, tail),
        kv_bytes=kv.blocks * sizes.kv_block_bytes(len(local) + len(tail)),
        overhead_bytes=sizes.overhead_bytes(spec.end_model.device, end_model=True),
        reason=_why_end_model(spec, sizes.facts),
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
            reason=share.reason,
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
        reasons=tuple(_reasons(sizes, kv, end_model, stages, slowest)),
    )


def _stations(
    spec: PipeSpec, sizes: Sizes, local: LayerRange, tail: LayerRange, shares: Sequence[_Share]
) -> list[Station]:
    device = spec.end_model.device
    fixed = sizes.end_weight_bytes(local, tail) + sizes.overhead_bytes(device, end_model=True)
    end_model = Station(
        END_MODEL,
        "the End Model",
        len(local) + len(tail),
        device,
        fixed,
        sizes.kv_block_bytes(len(local) + len(tail)),
        None,
    )
    stages = [
        Station(
            share.stage.name,
            f"stage {share.stage.name}",
            len(share.layers),
            share.stage.device,
            sizes.weight_bytes(share.layers) + sizes.overhead_bytes(share.stage.device, end_model=False),
            sizes.kv_block_bytes(len(share.layers)),
            share.stage.memory_bytes,
        )
        for share in shares
    ]
    return [end_model, *stages]


def _why_end_model(spec: PipeSpec, facts: ModelFacts) -> str:
    ends = f"the first {_of_an_end(spec.end_model.local_layers)}"
    if spec.end_model.tail_layers:
        ends += f" and the last {_of_an_end(spec.end_model.tail_layers)}"
    tied = "one matrix as embedding and head" if facts.tied_embeddings else "embedding and head"
    return f"{ends}, as asked; {tied}, and the norm"


def _of_an_end(count: int) -> str:
    return "layer" if count == 1 else f"{count} layers"


def _slowest(end_model: EndModelAssignment, stages: Sequence[StageAssignment]) -> str:
    """The station whose bytes take the longest to read; of equals, the first in the ring."""
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
            f"The End Model is the slowest station: it reads {format_bytes(end_model.step_bytes)} a step of "
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
