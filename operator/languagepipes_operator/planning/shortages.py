"""What is short on the nodes, with numbers and a remedy, where not every member fits.

Either no node, or not all nodes together, have enough (`shortage_of`); or there is enough, but not on one node
(`fragmentation_error`, after a search). Decides nothing about who goes where.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from languagepipes_api.quantity import format_bytes

from languagepipes_operator.planning.capacity import NodeCapacity
from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.planning.memory import USABLE_FRACTION
from languagepipes_operator.planning.nodes import GPU_RESOURCE, Node
from languagepipes_operator.planning.requests import MemberRequest, requested_bytes
from languagepipes_operator.planning.selection import why_not

_SHOWN_NODES = 4


@dataclass(frozen=True)
class DeadEnd:
    """The farthest point of a search: so many members placed, and no node for this one. lacking: by node, what was
    missing there (`NodeCapacity.why_not`), and for people how much of it is left.
    """

    placed: int
    member: MemberRequest
    lacking: Mapping[str, tuple[str, str]]


def lacking_on(
    capacities: Sequence[NodeCapacity], member: MemberRequest, *, cap_kv: bool
) -> dict[str, tuple[str, str]]:
    resource = member.gpu_resource
    left: dict[str, Callable[[NodeCapacity], str]] = {
        "memory": lambda capacity: (
            f"{format_bytes(capacity.free_bytes)} of memory free, "
            f"{format_bytes(member.memory_bytes - capacity.free_bytes)} short"
        ),
        "gpus": lambda capacity: (
            f"{capacity.free_gpus(resource)} GPUs free" if capacity.node.gpus_of(resource).count else "no GPU"
        ),
        "device": lambda capacity: f"GPUs of {format_bytes(capacity.gpu_memory(resource) or 0)}",
        "cpus": lambda capacity: f"{float(capacity.free_cpus or 0):g} CPUs free",
        "kv": lambda capacity: f"{format_bytes(capacity.kv_bytes_left)} left for KV",
    }
    found = ((capacity, capacity.why_not(member, cap_kv=cap_kv)) for capacity in capacities)
    return {capacity.node.name: (kind, left[kind](capacity)) for capacity, kind in found if kind in left}


def shortage_of(
    members: Sequence[MemberRequest], nodes: Sequence[Node], replicas: int
) -> tuple[MemberRequest, PlanError] | None:
    """What is short for one member alone, or for all together, without any search; and the member that shows it."""
    for member in members:
        able = [node for node in nodes if why_not(member.template, node) == ""]
        if not able:
            return (member, _no_node(member, nodes))
        if (error := _too_large(member, able)) is not None:
            return (member, error)
    for resource in sorted({member.gpu_resource for member in members if member.gpus}):
        on_gpus = [member for member in members if member.gpus and member.gpu_resource == resource]
        if (error := _too_few_gpus(on_gpus, resource, nodes, replicas)) is not None:
            return (on_gpus[0], error)
    needed = replicas * sum(member.memory_bytes for member in members)
    usable = [node for node in nodes if any(why_not(member.template, node) == "" for member in members)]
    free_bytes = sum(node.free_bytes for node in usable)
    if members and needed > free_bytes:
        return (
            max(members, key=lambda member: member.memory_bytes),
            PlanError(
                "InsufficientMemory",
                f"{_rings(replicas)}{_members(members)} ask for {format_bytes(needed)} of memory, and "
                f"{format_bytes(free_bytes)} are free on the nodes they may run on ({_listed(usable, _memory_of)}): "
                f"{format_bytes(needed - free_bytes)} short: use a shorter maxContextLength, a smaller model, fewer "
                "replicas, or add memory",
            ),
        )
    return None


def _too_few_gpus(
    members: Sequence[MemberRequest], resource: str, nodes: Sequence[Node], replicas: int
) -> PlanError | None:
    """members: those that ask for that extended resource."""
    wanted = replicas * sum(member.gpus for member in members)
    having = [node for node in nodes if any(why_not(member.template, node) == "" for member in members)]
    free = sum(node.gpus_of(resource).free for node in having)
    if wanted <= free:
        return None
    of_kind = "" if resource == GPU_RESOURCE else f" of the kind {resource}"
    listed = _listed(having, lambda node: str(node.gpus_of(resource).free))
    return PlanError(
        "InsufficientGPUs",
        f"{_rings(replicas)}{_members(members)} ask for {wanted} GPUs{of_kind}, and {free} "
        f"{'is' if free == 1 else 'are'} free ({listed}): {wanted - free} short: "
        "use fewer stages on GPUs, fewer replicas, or add GPUs",
    )


def _no_node(member: MemberRequest, nodes: Sequence[Node]) -> PlanError:
    obstacles = _listed(nodes, lambda node: why_not(member.template, node))
    return PlanError(
        "NoEligibleNode",
        f"{member.title} may run on none of {_count(len(nodes), 'node')} ({obstacles}): correct its template's "
        "nodeSelector, affinity or tolerations, or the nodes",
    )


def _too_large(member: MemberRequest, able: Sequence[Node]) -> PlanError | None:
    if member.gpus:
        kind = member.gpu_resource
        with_gpus = [node for node in able if node.gpus_of(kind).count]
        if not with_gpus:
            return PlanError(
                "NoSuchDevice",
                f"{member.title} asks for a GPU, but none of {_count(len(able), 'node')} that it may run on has one: "
                "set device to CPU, or add a node with GPUs",
            )
        known = [(memory, node) for node in with_gpus if (memory := node.gpus_of(kind).memory_bytes) is not None]
        if len(known) == len(with_gpus):
            memory, best = max(known, key=lambda each: (each[0], each[1].name))
            usable = int(memory * USABLE_FRACTION["GPU"])
            if member.device_bytes > usable:
                return PlanError(
                    "StageTooLarge",
                    f"{member.title} needs {format_bytes(member.device_bytes)} of GPU memory (KV for one sequence "
                    f"included), and the largest GPU ({best.name}) has {format_bytes(memory)}"
                    f"{_shared_words(best, kind)}, {format_bytes(usable)} of it usable: "
                    f"{format_bytes(member.device_bytes - usable)} short: give it fewer layers, or use "
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
            else "give it fewer layers, or use a shorter maxContextLength"
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


def fragmentation_error(
    stuck: DeadEnd, members: Sequence[MemberRequest], nodes: Sequence[Node], replicas: int
) -> PlanError:
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
        f"placed, {stuck.member.title}, which asks for {' and '.join(asks)}, finds no node ({left}): use more and "
        "smaller stages, a shorter maxContextLength, fewer replicas, or a larger node",
    )


def _shared_words(node: Node, resource: str) -> str:
    if resource != GPU_RESOURCE or node.gpu_sharing == 1:
        return ""
    return f" for each of the {node.gpu_sharing} pods that share it"


def _rings(replicas: int) -> str:
    return "" if replicas == 1 else f"{replicas} replicas: "


def _members(members: Sequence[MemberRequest]) -> str:
    return members[0].title if len(members) == 1 else f"{len(members)} members"


def _count(count: int, thing: str) -> str:
    return f"1 {thing}" if count == 1 else f"{count} {thing}s"


def _memory_of(node: Node) -> str:
    return format_bytes(node.free_bytes)


def _listed(nodes: Sequence[Node], about: Callable[[Node], str]) -> str:
    shown = [f"{node.name}: {about(node)}" for node in nodes[:_SHOWN_NODES]]
    more = [f"and {len(nodes) - _SHOWN_NODES} more"] if len(nodes) > _SHOWN_NODES else []
    return "; ".join(shown + more) or "there is no such node"
