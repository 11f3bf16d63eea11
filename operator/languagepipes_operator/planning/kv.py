"""How many KV blocks a ring gets: one number for all members, and which of them sets it.

Three things limit it: budgets, the machine that `languagepipes up` runs on, which all members share (`kv_plan`), and
the nodes of a cluster, each of which takes whole members (`kv_on_nodes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from languagepipes_api.plan import Device
from languagepipes_api.quantity import format_bytes

from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.planning.memory import CPU_KV_FRACTION, DEFAULT_SEQUENCES, USABLE_FRACTION
from languagepipes_operator.planning.nodes import Node
from languagepipes_operator.planning.placement import Packed, Unpacked, pack
from languagepipes_operator.planning.ring_members import RingMember

REQUESTS = "requests"


@dataclass(frozen=True)
class KvPlan:
    """limited_by: a member's name, or REQUESTS where every member could hold more than requests can use."""

    blocks: int
    limited_by: str
    reason: str


def kv_plan(
    ring_members: Sequence[RingMember],
    *,
    blocks_per_sequence: int,
    max_concurrent_requests: int,
    nodes: Sequence[Node],
) -> KvPlan:
    """Raises PlanError if the nodes cannot hold one sequence. Budgets are known to hold one (see `plan`)."""
    sequences = min(max_concurrent_requests, DEFAULT_SEQUENCES)
    best = KvPlan(
        sequences * blocks_per_sequence,
        REQUESTS,
        f"enough for {sequences} sequences, and more is not planned for",
    )
    for ring_member in ring_members:
        if ring_member.budget_bytes is not None:
            blocks = (ring_member.budget_bytes - ring_member.fixed_bytes) // ring_member.block_bytes
            if blocks < best.blocks:
                left = format_bytes(ring_member.budget_bytes - ring_member.fixed_bytes)
                budget = format_bytes(ring_member.budget_bytes)
                best = KvPlan(
                    blocks, ring_member.name, f"{ring_member.title} has {left} of its budget of {budget} left for KV"
                )
    devices: tuple[Device, ...] = ("CPU", "GPU")
    for device in devices:
        here = [ring_member for ring_member in ring_members if ring_member.device == device]
        if here and nodes:
            best = min(best, _shared(here, device, blocks_per_sequence, nodes), key=lambda kv: kv.blocks)
    return best


def kv_on_nodes(
    ring_members: Sequence[RingMember], kv: KvPlan, *, blocks_per_sequence: int, nodes: Sequence[Node], replicas: int
) -> tuple[KvPlan, Packed]:
    """At most `kv`, less where the cluster's nodes cannot take the members with so much; and where members go then.

    Beyond one sequence, KV takes at most CPU_KV_FRACTION of a node's memory. Raises PlanError if there is no room for
    one sequence.
    """

    def packed(blocks: int) -> Packed | Unpacked:
        members = [ring_member.request(blocks) for ring_member in ring_members]
        return pack(members, nodes, replicas=replicas, cap_kv=blocks > blocks_per_sequence)

    found = packed(kv.blocks)
    if isinstance(found, Packed):
        return kv, found
    low, best = blocks_per_sequence, packed(blocks_per_sequence)
    if isinstance(best, Unpacked):
        raise best.error
    high = -(-kv.blocks // blocks_per_sequence)  # sequences; with so many there is no room
    sequences = 1
    while high - sequences > 1:
        middle = (sequences + high) // 2
        found = packed(middle * blocks_per_sequence)
        if isinstance(found, Packed):
            sequences, low, best = middle, middle * blocks_per_sequence, found
        else:
            high = middle
    limit = packed(high * blocks_per_sequence)
    member = limit.member if isinstance(limit, Unpacked) else heaviest_of(ring_members)
    reason = f"with one more sequence {member.title} would fit on none of {_machines(nodes)}"
    return KvPlan(low, member.name, reason), best


def heaviest_of(ring_members: Sequence[RingMember]) -> RingMember:
    """The member with most KV."""
    return max(ring_members, key=lambda ring_member: ring_member.block_bytes)


def _shared(here: Sequence[RingMember], device: Device, blocks_per_sequence: int, nodes: Sequence[Node]) -> KvPlan:
    """What the machines leave to the members of one kind of device, all together and each for itself."""
    memories = memories_of(nodes, device)
    if not memories:
        raise PlanError(
            "NoSuchDevice",
            f"{here[0].title} asks for a {device}, but none of {_machines(nodes)} has one: set device to CPU",
        )
    largest = int(max(memories) * USABLE_FRACTION[device])
    for ring_member in here:
        need = ring_member.fixed_bytes + blocks_per_sequence * ring_member.block_bytes
        if need > largest:
            raise PlanError(
                "StageTooLarge",
                f"{ring_member.title}: {layers_text(ring_member.layers)} need{'s' if ring_member.layers == 1 else ''} "
                f"{format_bytes(need)} (weights and overhead {format_bytes(ring_member.fixed_bytes)}, "
                f"KV for one sequence "
                f"{format_bytes(blocks_per_sequence * ring_member.block_bytes)}), and the largest {device} memory is "
                f"{format_bytes(max(memories))}, {format_bytes(largest)} of it usable: "
                "give it fewer layers, or use a shorter maxContextLength",
            )
    usable = int(sum(memories) * USABLE_FRACTION[device])
    fixed = sum(ring_member.fixed_bytes for ring_member in here)
    block = sum(ring_member.block_bytes for ring_member in here)
    one_sequence = blocks_per_sequence * block
    if fixed + one_sequence > usable:
        raise PlanError(
            "InsufficientMemory",
            f"{len(here)} members on {device} need {format_bytes(fixed + one_sequence)} (weights and overhead "
            f"{format_bytes(fixed)}, KV for one sequence {format_bytes(one_sequence)}), and {_machines(nodes)} has "
            f"{format_bytes(sum(memories))}, {format_bytes(usable)} of it usable: use fewer stages, a shorter "
            "maxContextLength, a smaller model or more memory",
        )
    pool = usable - fixed
    if device == "CPU":
        pool = min(pool, max(one_sequence, int(sum(memories) * CPU_KV_FRACTION)))
    heaviest = heaviest_of(here)
    best = KvPlan(
        pool // block,
        heaviest.name,
        f"{format_bytes(pool)} of the {format_bytes(sum(memories))} of {_machines(nodes)} go to KV on {device}",
    )
    for ring_member in here:
        left = largest - ring_member.fixed_bytes
        if left // ring_member.block_bytes < best.blocks:
            best = KvPlan(
                left // ring_member.block_bytes,
                ring_member.name,
                f"{ring_member.title} leaves {format_bytes(left)} of the largest {device} memory for KV",
            )
    return best


def layers_text(count: int) -> str:
    """A number of layers, to people."""
    return "1 layer" if count == 1 else f"{count} layers"


def memories_of(nodes: Sequence[Node], device: Device) -> list[int]:
    """The memory of each device of that kind, in bytes."""
    if device == "CPU":
        return [node.memory_bytes for node in nodes]
    return [memory for node in nodes for memory in node.gpu_memory_bytes]


def _machines(nodes: Sequence[Node]) -> str:
    return nodes[0].name if len(nodes) == 1 else f"{len(nodes)} nodes"
