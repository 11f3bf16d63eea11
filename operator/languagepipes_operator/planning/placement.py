"""Which node each member should run on, so that all requests fit. A preference: the scheduler decides.

Members are assigned one after another, the largest of a replica first, each to the node with the fewest members of the
pipe, then (for members on a CPU) to one without GPUs, then to the one with most free memory. Where that leads nowhere,
assignments are taken back; then a second search fills nodes as tightly as possible. This module knows nodes and
requests; it knows neither layers nor models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from languagepipes_api.quantity import format_bytes

from languagepipes_operator.planning.capacity import NodeCapacity
from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.planning.memory import USABLE_FRACTION
from languagepipes_operator.planning.nodes import GPU_RESOURCE, Node
from languagepipes_operator.planning.requests import MemberRequest, other_gpus
from languagepipes_operator.planning.selection import matches, selects, why_not
from languagepipes_operator.planning.shortages import DeadEnd, fragmentation_error, lacking_on, shortage_of

# How many nodes may be looked at in taking choices back, over one order, before packing counts as impossible: a large
# cluster must not hold up the operator's other pipes.
_MOST_LOOKS = 50_000


@dataclass(frozen=True)
class Assignment:
    """The node of a member. node: None where only the scheduler decides. why: a phrase for the member's reason."""

    node: str | None
    why: str


@dataclass(frozen=True)
class Packed:
    """assignments: for each replica, by the member's name."""

    assignments: tuple[Mapping[str, Assignment], ...]


@dataclass(frozen=True)
class Unpacked:
    """Why not all members fit. member: the one that no node can take."""

    member: MemberRequest
    error: PlanError


def pack(
    members: Sequence[MemberRequest], nodes: Sequence[Node], *, replicas: int, cap_kv: bool = False
) -> Packed | Unpacked:
    """Every member of every replica on a node that can take it.

    cap_kv: KV takes at most CPU_KV_FRACTION of a node's memory. A member whose template selects nodes of which there
    are none yet is left to the scheduler: an autoscaler may make one.
    """
    free = {member.name: _left_to_scheduler(member, nodes) for member in members}
    bound = [member for member in members if free[member.name] is None]
    if (shortage := shortage_of(bound, nodes, replicas)) is not None:
        return Unpacked(*shortage)
    by_replica = [(replica, member) for replica in range(replicas) for member in sorted(bound, key=_size, reverse=True)]
    largest_first = sorted(by_replica, key=lambda item: _size(item[1]), reverse=True)
    attempts: tuple[tuple[list[tuple[int, MemberRequest]], _Preference], ...] = (
        (by_replica, _most_free_first),
        (largest_first, _least_free_first),
    )
    dead_ends: list[DeadEnd] = []
    for order, preference in attempts:
        found = _search(order, nodes, preference, cap_kv=cap_kv)
        if isinstance(found, DeadEnd):
            dead_ends.append(found)
            continue
        assignments: list[dict[str, Assignment]] = [
            {member.name: assignment for member in members if (assignment := free[member.name]) is not None}
            for _ in range(replicas)
        ]
        for (replica, member), assignment in zip(order, found, strict=True):
            assignments[replica][member.name] = assignment
        return Packed(tuple(assignments))
    farthest = max(dead_ends, key=lambda each: each.placed)
    return Unpacked(farthest.member, fragmentation_error(farthest, bound, nodes, replicas))


def stage_capacities(
    end_model: MemberRequest,
    stage: MemberRequest,
    nodes: Sequence[Node],
    *,
    stages: int,
    replicas: int,
    fill: bool,
    stages_per_node: int,
) -> list[int]:
    """How much memory of its device each of `stages` equal stages may take on these unequal nodes, the largest first;
    empty if they do not fit.

    The End Models are assigned first, to the node with the least free memory (fill) or with the most. Then stages are
    distributed as the D'Hondt method distributes seats, at most `stages_per_node` to a node: each goes to the node
    where the stages of that node keep the most memory each. With several replicas, a stage's capacity is the least that
    any replica has for it.
    """
    capacities = [NodeCapacity(node) for node in nodes if node.schedulable]
    stage = replace(stage, device_bytes=0)  # any GPU will do, with as many layers as it holds
    preference = _least_free_first if fill else _most_free_first
    for _ in range(replicas if _left_to_scheduler(end_model, nodes) is None else 0):
        able = [capacity for capacity in capacities if capacity.why_not(end_model, cap_kv=False) == ""]
        if not able:
            return []
        min(able, key=lambda capacity: preference(capacity, end_model)).put(end_model)
    found: list[int] = []
    if stage.device == "GPU":
        for capacity in capacities:
            memory = capacity.gpu_memory(stage.gpu_resource)
            while stage.gpus and memory is not None and capacity.why_not(stage, cap_kv=False) == "":
                capacity.put(stage)
                found.append(int(memory * USABLE_FRACTION["GPU"]))
        found = sorted(found, reverse=True)[: stages * replicas]
    else:
        shared: dict[str, int] = {}
        for _ in range(stages * replicas):
            able = [
                capacity
                for capacity in capacities
                if shared.get(capacity.node.name, 0) < stages_per_node and why_not(stage.template, capacity.node) == ""
            ]
            if not able:
                return []
            best = max(
                able,
                key=lambda capacity: (
                    capacity.free_bytes // (shared.get(capacity.node.name, 0) + 1),
                    capacity.node.name,
                ),
            )
            shared[best.node.name] = shared.get(best.node.name, 0) + 1
        for capacity in capacities:
            if count := shared.get(capacity.node.name):
                found += [capacity.free_bytes // count] * count
        found.sort(reverse=True)
    if len(found) < stages * replicas:
        return []
    return [found[place * replicas + replicas - 1] for place in range(stages)]


def _size(member: MemberRequest) -> tuple[int, int, int]:
    return member.gpus, member.device_bytes, member.memory_bytes


def _most_free_first(capacity: NodeCapacity, member: MemberRequest) -> tuple[int, bool, int, str]:
    return capacity.members, member.device == "CPU" and capacity.node.has_gpus, -capacity.free_bytes, capacity.node.name


def _least_free_first(capacity: NodeCapacity, member: MemberRequest) -> tuple[int, bool, int, str]:
    return 0, member.device == "CPU" and capacity.node.has_gpus, capacity.free_bytes, capacity.node.name


_Preference = Callable[[NodeCapacity, MemberRequest], tuple[int, bool, int, str]]


@dataclass
class _Level:
    """One member of a search and the nodes that are still to be tried for it."""

    choices: Iterator[NodeCapacity]
    taken: NodeCapacity | None = None
    assignment: Assignment | None = None


def _search(
    order: Sequence[tuple[int, MemberRequest]],
    nodes: Sequence[Node],
    preference: _Preference,
    *,
    cap_kv: bool,
) -> list[Assignment] | DeadEnd:
    """Depth first, by a list and not by recursion: sixteen replicas have a thousand members."""
    if not order:
        return []
    capacities = [NodeCapacity(node) for node in _useful(order, nodes)]
    levels: list[_Level] = []
    deepest = DeadEnd(-1, order[0][1], {})
    for _ in range(2 * len(order) + _MOST_LOOKS // max(1, len(capacities))):
        if len(levels) == len(order) and levels[-1].taken is not None:
            return [level.assignment for level in levels if level.assignment is not None]
        if not levels or levels[-1].taken is not None:
            levels.append(_Level(_choices(capacities, order[len(levels)][1], preference, cap_kv=cap_kv)))
        level, member = levels[-1], order[len(levels) - 1][1]
        if (capacity := next(level.choices, None)) is not None:
            level.assignment = Assignment(capacity.node.name, _why(capacity, member))
            capacity.put(member)
            level.taken = capacity
            continue
        if len(levels) - 1 > deepest.placed:
            deepest = DeadEnd(len(levels) - 1, member, lacking_on(capacities, member, cap_kv=cap_kv))
        levels.pop()
        if not levels:
            break
        former = levels[-1]
        if former.taken is not None:
            former.taken.put(order[len(levels) - 1][1], -1)
            former.taken = None
    return deepest


def _choices(
    capacities: Sequence[NodeCapacity], member: MemberRequest, preference: _Preference, *, cap_kv: bool
) -> Iterator[NodeCapacity]:
    """Nodes that can take it, the preferred one first."""
    able = [capacity for capacity in capacities if capacity.why_not(member, cap_kv=cap_kv) == ""]
    return iter(sorted(able, key=lambda capacity: preference(capacity, member)))


def _useful(order: Sequence[tuple[int, MemberRequest]], nodes: Sequence[Node]) -> list[Node]:
    """As many nodes as could be used, of each kind of template those with most free: a thousand nodes are as good as
    the largest few.
    """
    kept: dict[str, Node] = {}
    templates = {(id(member.template), member.device): member for _, member in order}
    for member in templates.values():
        able = [
            node
            for node in nodes
            if why_not(member.template, node) == "" and node.gpus_of(member.gpu_resource).free >= member.gpus
        ]
        able.sort(key=lambda node: (-node.free_bytes, node.name))
        kept |= {node.name: node for node in able[: len(order)]}
    return [node for node in nodes if node.name in kept]


def _why(capacity: NodeCapacity, member: MemberRequest) -> str:
    """Just before the member goes there."""
    others = f"{capacity.members} other member{'' if capacity.members == 1 else 's'} of the pipe"
    free = f"{format_bytes(capacity.free_bytes)} free for its {format_bytes(member.memory_bytes)}"
    gpus = capacity.free_gpus(member.gpu_resource) if member.gpus else 0
    gpu = f", {gpus} GPU{'' if gpus == 1 else 's'} free" if member.gpus else ""
    company = others if capacity.members else "no other member of the pipe"
    return f"prefers {capacity.node.name}: {free}{gpu}, {company} there"


def _left_to_scheduler(member: MemberRequest, nodes: Sequence[Node]) -> Assignment | None:
    if member.left_to_scheduler or (
        # A kind of GPU that no node has, not even without one free: who offers it is not known yet.
        member.gpu_resource != GPU_RESOURCE and not any(node.gpus_of(member.gpu_resource).count for node in nodes)
    ):
        return Assignment(None, f"the scheduler finds its node, by {', '.join(other_gpus(member.template))}")
    if selects(member.template) and not any(matches(member.template, node) for node in nodes):
        return Assignment(None, "its template selects nodes of which there are none yet: the scheduler waits for one")
    return None
