"""Which stage gets which layers: from a count, or from a list of layers, budgets and at most one entry for the rest.

Knows layers and bytes; of nodes only how much memory they have for a stage. How ranges are cut is in `layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

from languagepipes_api.plan import Device, LayerRange
from languagepipes_api.quantity import format_bytes
from languagepipes_api.spec import PipeSpec, StageSpec

from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.planning.kv import layers_text, memories_of
from languagepipes_operator.planning.layers import Slot, longest, split
from languagepipes_operator.planning.memory import USABLE_FRACTION, Sizes
from languagepipes_operator.planning.nodes import Node
from languagepipes_operator.planning.placement import Packed, pack, stage_capacities
from languagepipes_operator.planning.requests import memory_request_bytes
from languagepipes_operator.planning.ring_members import Share, ring_members_of
from languagepipes_operator.planning.stages import wanted


def shares_of(spec: PipeSpec, sizes: Sizes, middle: LayerRange, nodes: Sequence[Node]) -> tuple[Share, ...]:
    """Every stage with its layers. middle: the layers of the stages together. Raises PlanError."""
    stages = wanted(spec)
    if spec.stages.items is None:
        return _even(stages, sizes, middle, nodes)
    for stage in stages:
        _check_budget_holds_a_layer(stage, sizes, middle)
    if any(stage.open for stage in stages):
        return _with_rest(stages, sizes, middle)
    return _sized(stages, sizes, middle)


def _even(stages: tuple[StageSpec, ...], sizes: Sizes, middle: LayerRange, nodes: Sequence[Node]) -> tuple[Share, ...]:
    """A count: the heaviest stage as light as possible; on known machines, no stage larger than the largest of them."""
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
        Share(
            stage,
            layers,
            f"{len(layers)} of {len(middle)} layers: no split over {len(stages)} has a heaviest stage below "
            f"{heaviest} a step",
        )
        for stage, layers in zip(stages, ranges, strict=True)
    )


def _with_rest(stages: tuple[StageSpec, ...], sizes: Sizes, middle: LayerRange) -> tuple[Share, ...]:
    """A list with one entry without size: the others take their layers from both ends, and it takes the rest."""
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
    return tuple(Share(stage, taken[place], _why(stage, taken[place], sizes)) for place, stage in enumerate(stages))


def _sized(stages: tuple[StageSpec, ...], sizes: Sizes, middle: LayerRange) -> tuple[Share, ...]:
    """A list where every entry has layers or a budget; balanced among the budgets where they hold more than enough."""
    slots = [Slot(exactly=stage.layers, fits=_fits(stage, sizes)) for stage in stages]
    ranges = split(_costs(sizes, middle), slots, first=middle.start)
    if ranges is None:
        raise _wrong_sum(stages, sizes, middle)
    return tuple(Share(stage, layers, _why(stage, layers, sizes)) for stage, layers in zip(stages, ranges, strict=True))


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


def fit_to_nodes(
    spec: PipeSpec, sizes: Sizes, local: LayerRange, tail: LayerRange, equal: tuple[Share, ...], nodes: Sequence[Node]
) -> tuple[Share, ...]:
    """A count on a cluster: the equal split, or another one if the nodes can take only that.

    If there is none, the equal split is returned, and `assembly` refuses it with the shortage.
    """
    sequence = sizes.blocks_per_sequence
    end_model, *stages = (
        ring_member.request(sequence) for ring_member in ring_members_of(spec, sizes, local, tail, equal)
    )
    packed = pack([end_model, *stages], nodes, replicas=spec.planned_replicas)
    if isinstance(packed, Packed) or len(stages) < 2:
        return equal
    device, middle = stages[0].device, LayerRange(equal[0].layers.start, equal[-1].layers.stop)
    need = packed.member.device_bytes or packed.member.memory_bytes
    replicas = spec.planned_replicas
    evenly = -(-len(stages) * replicas // len(nodes))
    for per_node, fill in product((evenly, len(stages) * replicas), (True, False)):
        caps = stage_capacities(
            end_model,
            stages[0],
            nodes,
            stages=len(stages),
            replicas=replicas,
            fill=fill,
            stages_per_node=per_node,
        )
        slots = [Slot(fits=_within(cap, sizes, device)) for cap in caps]
        ranges = split(_costs(sizes, middle), slots, first=middle.start)
        if ranges is None:
            continue
        shares = tuple(
            Share(
                share.stage,
                layers,
                f"{len(layers)} of {len(middle)} layers: an equal split does not fit the nodes "
                f"({packed.member.title} would need {format_bytes(need)}), this one does",
            )
            for share, layers in zip(equal, ranges, strict=True)
        )
        ring_members = ring_members_of(spec, sizes, local, tail, shares)
        if isinstance(pack([each.request(sequence) for each in ring_members], nodes, replicas=replicas), Packed):
            return shares
    return equal


def _within(cap: int, sizes: Sizes, device: Device) -> Callable[[int, int], bool]:
    def fits(start: int, stop: int) -> bool:
        need = sizes.stage_need_bytes(LayerRange(start, stop), device)
        return (memory_request_bytes(device, need) if device == "CPU" else need) <= cap

    return fits
