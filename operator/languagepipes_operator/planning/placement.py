"""Which node each member would rather run on, so that all requests fit: packing, and what is short where they do not.

The scheduler has the last word: what comes out is a preference. Members go one after another, the largest of a replica
first, each to the node with the fewest members of the pipe, then (for members on a CPU) to one without GPUs, then to
the one with most free memory; where that leads nowhere, choices are taken back, and then tight packing is tried. This
module knows nodes and requests; it knows neither layers nor models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from languagepipes_api.plan import Device
from languagepipes_api.quantity import format_bytes
from languagepipes_api.template import PodTemplate

from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.planning.memory import CPU_KV_FRACTION, USABLE_FRACTION
from languagepipes_operator.planning.nodes import Node
from languagepipes_operator.planning.requests import (
    memory_request_bytes,
    other_gpus,
    requested_bytes,
    requested_cpus,
    requested_gpus,
)
from languagepipes_operator.planning.selection import matches, selects, why_not

# How many nodes may be looked at in taking choices back, over one order, before packing counts as impossible: a large
# cluster must not hold up the operator's other pipes.
_MOST_LOOKS = 50_000
_SHOWN_NODES = 4


@dataclass(frozen=True)
class Member:
    """One member of a replica and what its pod asks for.

    title: its name to people. memory_bytes: main memory. kv_bytes: the part of it that is KV. device_bytes: memory of
    its GPU, 0 on a CPU.
    """

    name: str
    title: str
    device: Device
    template: PodTemplate | None
    memory_bytes: int
    kv_bytes: int
    device_bytes: int
    gpus: int
    cpus: Fraction

    @classmethod
    def of(
        cls, name: str, title: str, device: Device, template: PodTemplate | None, *, need_bytes: int, kv_bytes: int
    ) -> Member:
        """need_bytes: weights, KV and overhead on its device."""
        return cls(
            name=name,
            title=title,
            device=device,
            template=template,
            memory_bytes=requested_bytes(template, memory_request_bytes(device, need_bytes)),
            kv_bytes=kv_bytes if device == "CPU" else 0,
            device_bytes=need_bytes if device == "GPU" else 0,
            gpus=requested_gpus(template, device),
            cpus=requested_cpus(template),
        )

    @property
    def left_to_scheduler(self) -> bool:
        """GPUs of a kind that the planner cannot count."""
        return bool(other_gpus(self.template))


@dataclass(frozen=True)
class Assignment:
    """Where a member goes. why: some words for its reason; node: None where the scheduler decides."""

    node: str | None
    why: str


@dataclass(frozen=True)
class Packed:
    """seats: for each replica, by member's name."""

    assignments: tuple[Mapping[str, Assignment], ...]


@dataclass(frozen=True)
class Unpacked:
    """Why there is no way to place everybody. member: the one that found no place."""

    member: Member
    error: PlanError


def pack(members: Sequence[Member], nodes: Sequence[Node], *, replicas: int, cap_kv: bool = False) -> Packed | Unpacked:
    """Every member of every replica on a node that may take it.

    cap_kv: KV takes at most CPU_KV_FRACTION of a node's memory. A member whose template selects nodes of which there
    are none yet is left to the scheduler: an autoscaler may make one.
    """
    free = {member.name: _left_to_scheduler(member, nodes) for member in members}
    bound = [member for member in members if free[member.name] is None]
    if (refused := _refusal(bound, nodes, replicas)) is not None:
        return refused
    by_replica = [(replica, member) for replica in range(replicas) for member in sorted(bound, key=_size, reverse=True)]
    largest_first = sorted(by_replica, key=lambda item: _size(item[1]), reverse=True)
    attempts: tuple[tuple[list[tuple[int, Member]], _Preference], ...] = ((by_replica, _roomy), (largest_first, _tight))
    stuck: list[_Stuck] = []
    for order, preference in attempts:
        found = _search(order, nodes, preference, cap_kv=cap_kv)
        if isinstance(found, _Stuck):
            stuck.append(found)
            continue
        assignments: list[dict[str, Assignment]] = [
            {member.name: assignment for member in members if (assignment := free[member.name]) is not None}
            for _ in range(replicas)
        ]
        for (replica, member), assignment in zip(order, found, strict=True):
            assignments[replica][member.name] = assignment
        return Packed(tuple(assignments))
    deepest = max(stuck, key=lambda each: each.placed)
    return Unpacked(deepest.member, _in_pieces(deepest, bound, nodes, replicas))


def rooms(
    end_model: Member, stage: Member, nodes: Sequence[Node], *, stages: int, replicas: int, tight: bool, together: int
) -> list[int]:
    """How much memory of its device each of `stages` like stages may take on these unlike nodes, the largest first;
    empty if there is no way.

    The End Models go first, to the node that they fill best (tight) or least. Then stages are shared out to nodes as
    D'Hondt shares out seats, at most `together` to a node: each goes where it leaves all those there the most. With
    several replicas, a stage's room is the least that any replica has for it.
    """
    capacities = [_NodeCapacity(node) for node in nodes if node.schedulable]
    stage = replace(stage, device_bytes=0)  # any GPU will do, with as many layers as it holds
    preference = _tight if tight else _roomy
    for _ in range(replicas if _left_to_scheduler(end_model, nodes) is None else 0):
        able = [capacity for capacity in capacities if capacity.why_not(end_model, cap_kv=False) == ""]
        if not able:
            return []
        min(able, key=lambda capacity: preference(capacity, end_model)).put(end_model)
    found: list[int] = []
    if stage.device == "GPU":
        for capacity in capacities:
            while stage.gpus and capacity.gpu_memory is not None and capacity.why_not(stage, cap_kv=False) == "":
                capacity.put(stage)
                found.append(int(capacity.gpu_memory * USABLE_FRACTION["GPU"]))
        found = sorted(found, reverse=True)[: stages * replicas]
    else:
        shared: dict[str, int] = {}
        for _ in range(stages * replicas):
            able = [
                capacity
                for capacity in capacities
                if shared.get(capacity.node.name, 0) < together and why_not(stage.template, capacity.node) == ""
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


class _NodeCapacity:
    """One node while members are put on it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.free_bytes = node.free_bytes
        self.free_gpus = node.free_gpus
        self.free_cpus = node.free_cpus
        self.kv_room = int(node.memory_bytes * CPU_KV_FRACTION)
        self.gpu_memory = min(node.gpu_memory_bytes, default=None)
        self.members = 0
        self._allowed: dict[int, bool] = {}

    def why_not(self, member: Member, *, cap_kv: bool) -> str:
        """What is missing for the member, in one word; empty if nothing is."""
        if id(member.template) not in self._allowed:
            self._allowed[id(member.template)] = why_not(member.template, self.node) == ""
        if not self._allowed[id(member.template)]:
            return "template"
        if member.gpus > self.free_gpus:
            return "gpus"
        if self.gpu_memory is not None and member.device_bytes > self.gpu_memory * USABLE_FRACTION["GPU"]:
            return "device"
        if member.memory_bytes > self.free_bytes:
            return "memory"
        if self.free_cpus is not None and member.cpus > self.free_cpus:
            return "cpus"
        return "kv" if cap_kv and member.kv_bytes > self.kv_room else ""

    def put(self, member: Member, sign: int = 1) -> None:
        """sign: -1 takes it away again."""
        self.free_bytes -= sign * member.memory_bytes
        self.free_gpus -= sign * member.gpus
        self.kv_room -= sign * member.kv_bytes
        self.members += sign
        if self.free_cpus is not None:
            self.free_cpus -= sign * member.cpus


def _size(member: Member) -> tuple[int, int, int]:
    return member.gpus, member.device_bytes, member.memory_bytes


def _roomy(capacity: _NodeCapacity, member: Member) -> tuple[int, bool, int, str]:
    return capacity.members, member.device == "CPU" and capacity.node.gpus > 0, -capacity.free_bytes, capacity.node.name


def _tight(capacity: _NodeCapacity, member: Member) -> tuple[int, bool, int, str]:
    return 0, member.device == "CPU" and capacity.node.gpus > 0, capacity.free_bytes, capacity.node.name


_Preference = Callable[[_NodeCapacity, Member], tuple[int, bool, int, str]]


@dataclass(frozen=True)
class _Stuck:
    """The farthest that a search came: so many members placed, and then this one found no node. lacking: by node, what
    was missing there (`_Tray.why_not`) and how much of it was left, to people.
    """

    placed: int
    member: Member
    lacking: Mapping[str, tuple[str, str]]


@dataclass
class _Level:
    """One member of a search and the nodes that are still to be tried for it."""

    choices: Iterator[_NodeCapacity]
    taken: _NodeCapacity | None = None
    assignment: Assignment | None = None


def _search(
    order: Sequence[tuple[int, Member]],
    nodes: Sequence[Node],
    preference: _Preference,
    *,
    cap_kv: bool,
) -> list[Assignment] | _Stuck:
    """Depth first, by a list and not by recursion: sixteen replicas have a thousand members."""
    if not order:
        return []
    capacities = [_NodeCapacity(node) for node in _useful(order, nodes)]
    levels: list[_Level] = []
    deepest = _Stuck(-1, order[0][1], {})
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
            deepest = _Stuck(len(levels) - 1, member, _lacking(capacities, member, cap_kv=cap_kv))
        levels.pop()
        if not levels:
            break
        former = levels[-1]
        if former.taken is not None:
            former.taken.put(order[len(levels) - 1][1], -1)
            former.taken = None
    return deepest


def _lacking(capacities: Sequence[_NodeCapacity], member: Member, *, cap_kv: bool) -> dict[str, tuple[str, str]]:
    left: dict[str, Callable[[_NodeCapacity], str]] = {
        "memory": lambda capacity: (
            f"{format_bytes(capacity.free_bytes)} of memory free, "
            f"{format_bytes(member.memory_bytes - capacity.free_bytes)} short"
        ),
        "gpus": lambda capacity: f"{capacity.free_gpus} GPUs free" if capacity.node.gpus else "no GPU",
        "device": lambda capacity: f"GPUs of {format_bytes(capacity.gpu_memory or 0)}",
        "cpus": lambda capacity: f"{float(capacity.free_cpus or 0):g} CPUs free",
        "kv": lambda capacity: f"{format_bytes(capacity.kv_room)} left for KV",
    }
    found = ((capacity, capacity.why_not(member, cap_kv=cap_kv)) for capacity in capacities)
    return {capacity.node.name: (kind, left[kind](capacity)) for capacity, kind in found if kind in left}


def _choices(
    capacities: Sequence[_NodeCapacity], member: Member, preference: _Preference, *, cap_kv: bool
) -> Iterator[_NodeCapacity]:
    """Nodes that can take it, the preferred one first."""
    able = [capacity for capacity in capacities if capacity.why_not(member, cap_kv=cap_kv) == ""]
    return iter(sorted(able, key=lambda capacity: preference(capacity, member)))


def _useful(order: Sequence[tuple[int, Member]], nodes: Sequence[Node]) -> list[Node]:
    """As many nodes as could be used, of each kind of template those with most free: a thousand nodes are as good as
    the largest few.
    """
    kept: dict[str, Node] = {}
    templates = {(id(member.template), member.device): member for _, member in order}
    for member in templates.values():
        able = [node for node in nodes if why_not(member.template, node) == "" and node.free_gpus >= member.gpus]
        able.sort(key=lambda node: (-node.free_bytes, node.name))
        kept |= {node.name: node for node in able[: len(order)]}
    return [node for node in nodes if node.name in kept]


def _why(capacity: _NodeCapacity, member: Member) -> str:
    """Just before the member goes there."""
    others = f"{capacity.members} other member{'' if capacity.members == 1 else 's'} of the pipe"
    free = f"{format_bytes(capacity.free_bytes)} free for its {format_bytes(member.memory_bytes)}"
    gpu = f", {capacity.free_gpus} GPU{'' if capacity.free_gpus == 1 else 's'} free" if member.gpus else ""
    company = others if capacity.members else "no other member of the pipe"
    return f"prefers {capacity.node.name}: {free}{gpu}, {company} there"


def _left_to_scheduler(member: Member, nodes: Sequence[Node]) -> Assignment | None:
    if member.left_to_scheduler:
        return Assignment(None, f"the scheduler finds its node, by {', '.join(other_gpus(member.template))}")
    if selects(member.template) and not any(matches(member.template, node) for node in nodes):
        return Assignment(None, "its template selects nodes of which there are none yet: the scheduler waits for one")
    return None


def _refusal(members: Sequence[Member], nodes: Sequence[Node], replicas: int) -> Unpacked | None:
    """What is short for one member alone, or for all together, without any packing."""
    for member in members:
        able = [node for node in nodes if why_not(member.template, node) == ""]
        if not able:
            return Unpacked(member, _no_node(member, nodes))
        if (error := _too_large(member, able)) is not None:
            return Unpacked(member, error)
    on_gpus = [member for member in members if member.gpus]
    wanted = replicas * sum(member.gpus for member in on_gpus)
    having = [node for node in nodes if any(why_not(member.template, node) == "" for member in on_gpus)]
    free_gpus = sum(node.free_gpus for node in having)
    if wanted > free_gpus:
        return Unpacked(
            on_gpus[0],
            PlanError(
                "InsufficientGPUs",
                f"{_rings(replicas)}{_members(on_gpus)} ask for {wanted} GPUs, and {free_gpus} "
                f"{'is' if free_gpus == 1 else 'are'} free ({_listed(having, _gpus_of)}): {wanted - free_gpus} short: "
                "take fewer stages on GPUs, fewer replicas, or add GPUs",
            ),
        )
    needed = replicas * sum(member.memory_bytes for member in members)
    usable = [node for node in nodes if any(why_not(member.template, node) == "" for member in members)]
    free_bytes = sum(node.free_bytes for node in usable)
    if members and needed > free_bytes:
        return Unpacked(
            max(members, key=lambda member: member.memory_bytes),
            PlanError(
                "InsufficientMemory",
                f"{_rings(replicas)}{_members(members)} ask for {format_bytes(needed)} of memory, and "
                f"{format_bytes(free_bytes)} are free on the nodes they may run on ({_listed(usable, _memory_of)}): "
                f"{format_bytes(needed - free_bytes)} short: take a shorter maxContextLength, a smaller model, fewer "
                "replicas, or add memory",
            ),
        )
    return None


def _no_node(member: Member, nodes: Sequence[Node]) -> PlanError:
    obstacles = _listed(nodes, lambda node: why_not(member.template, node))
    return PlanError(
        "NoEligibleNode",
        f"{member.title} may run on none of {_count(len(nodes), 'node')} ({obstacles}): correct its template's "
        "nodeSelector, affinity or tolerations, or the nodes",
    )


def _too_large(member: Member, able: Sequence[Node]) -> PlanError | None:
    if member.gpus:
        with_gpus = [node for node in able if node.gpus]
        if not with_gpus:
            return PlanError(
                "NoSuchDevice",
                f"{member.title} asks for a GPU, but none of {_count(len(able), 'node')} that it may run on has one: "
                "set device to CPU, or add a node with GPUs",
            )
        known = [node for node in with_gpus if node.gpu_memory_bytes]
        if len(known) == len(with_gpus):
            best = max(known, key=lambda node: (max(node.gpu_memory_bytes), node.name))
            memory = max(best.gpu_memory_bytes)
            usable = int(memory * USABLE_FRACTION["GPU"])
            if member.device_bytes > usable:
                return PlanError(
                    "StageTooLarge",
                    f"{member.title} needs {format_bytes(member.device_bytes)} of GPU memory (KV for one sequence "
                    f"included), and the largest GPU ({best.name}) has {format_bytes(memory)}, {format_bytes(usable)} "
                    f"of it usable: {format_bytes(member.device_bytes - usable)} short: give it fewer layers, or take "
                    "a shorter maxContextLength",
                )
        able = with_gpus
    largest = max(able, key=lambda node: (node.free_bytes, node.name))
    if member.memory_bytes > largest.free_bytes:
        # Where its template says what to ask for, layers change nothing.
        asked = requested_bytes(member.template, 0) > 0
        remedy = (
            "lower memory in its template, or leave it out"
            if asked
            else "give it fewer layers, or take a shorter maxContextLength"
        )
        return PlanError(
            "StageTooLarge",
            f"{member.title} asks for {format_bytes(member.memory_bytes)} of memory, and the most that is free on a "
            f"node that it may run on is {format_bytes(largest.free_bytes)} ({largest.name}): "
            f"{format_bytes(member.memory_bytes - largest.free_bytes)} short: {remedy}",
        )
    counted = [(node.free_cpus, node.name) for node in able if node.free_cpus is not None]
    if len(counted) == len(able) and member.cpus > max(counted)[0]:
        free, name = max(counted)
        return PlanError(
            "InsufficientCPU",
            f"{member.title} asks for {float(member.cpus):g} CPUs, and the most that are free on a node that it may "
            f"run on are {float(free):g} ({name}): {float(member.cpus - free):g} short: lower its template's requests",
        )
    return None


def _in_pieces(stuck: _Stuck, members: Sequence[Member], nodes: Sequence[Node], replicas: int) -> PlanError:
    kinds = {kind for kind, _ in stuck.lacking.values()}
    reason = "InsufficientMemory"
    asks = [f"{format_bytes(stuck.member.memory_bytes)} of memory"]
    if stuck.member.gpus:
        asks.append(f"{_count(stuck.member.gpus, 'GPU')} with {format_bytes(stuck.member.device_bytes)}")
        reason = "InsufficientGPUs" if kinds == {"gpus"} else reason
    if stuck.member.cpus:
        asks.append(f"{float(stuck.member.cpus):g} CPUs")
        reason = "InsufficientCPU" if kinds == {"cpus"} else reason
    left = "; ".join(f"{node}: {text}" for node, (_, text) in list(stuck.lacking.items())[:_SHOWN_NODES])
    return PlanError(
        reason,
        f"{_rings(replicas)}{_members(members)} do not fit on {_count(len(nodes), 'node')} together: with the others "
        f"placed, {stuck.member.title}, which asks for {' and '.join(asks)}, finds no node ({left}): take more and "
        "smaller stages, a shorter maxContextLength, fewer replicas, or a larger node",
    )


def _rings(replicas: int) -> str:
    return "" if replicas == 1 else f"{replicas} replicas: "


def _members(members: Sequence[Member]) -> str:
    return members[0].title if len(members) == 1 else f"{len(members)} members"


def _count(count: int, thing: str) -> str:
    return f"1 {thing}" if count == 1 else f"{count} {thing}s"


def _gpus_of(node: Node) -> str:
    return str(node.free_gpus)


def _memory_of(node: Node) -> str:
    return format_bytes(node.free_bytes)


def _listed(nodes: Sequence[Node], about: Callable[[Node], str]) -> str:
    shown = [f"{node.name}: {about(node)}" for node in nodes[:_SHOWN_NODES]]
    more = [f"and {len(nodes) - _SHOWN_NODES} more"] if len(nodes) > _SHOWN_NODES else []
    return "; ".join(shown + more) or "there is no such node"
