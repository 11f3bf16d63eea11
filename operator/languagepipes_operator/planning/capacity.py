"""How much of one node is still free while members are assigned to it. Knows no search and no order."""

from __future__ import annotations

from languagepipes_operator.planning.memory import CPU_KV_FRACTION, USABLE_FRACTION
from languagepipes_operator.planning.nodes import Node
from languagepipes_operator.planning.requests import MemberRequest
from languagepipes_operator.planning.selection import why_not


class NodeCapacity:
    """One node while members are assigned to it. kv_bytes_left: what KV may still take of its main memory."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.free_bytes = node.free_bytes
        self.free_cpus = node.free_cpus
        self.kv_bytes_left = int(node.memory_bytes * CPU_KV_FRACTION)
        self._gpus_taken: dict[str, int] = {}
        self.members = 0
        self._allowed: dict[int, bool] = {}

    def free_gpus(self, resource: str) -> int:
        return self.node.gpus_of(resource).free - self._gpus_taken.get(resource, 0)

    def gpu_memory(self, resource: str) -> int | None:
        """Of each GPU of the resource; None where it is not known."""
        return self.node.gpus_of(resource).memory_bytes

    def why_not(self, member: MemberRequest, *, cap_kv: bool) -> str:
        """What is missing for the member, in one word; empty if nothing is."""
        if id(member.template) not in self._allowed:
            self._allowed[id(member.template)] = why_not(member.template, self.node) == ""
        if not self._allowed[id(member.template)]:
            return "template"
        if member.gpus:
            if member.gpus > self.free_gpus(member.gpu_resource):
                return "gpus"
            memory = self.gpu_memory(member.gpu_resource)
            if memory is not None and member.device_bytes > memory * USABLE_FRACTION["GPU"]:
                return "device"
        if member.memory_bytes > self.free_bytes:
            return "memory"
        if self.free_cpus is not None and member.cpus > self.free_cpus:
            return "cpus"
        return "kv" if cap_kv and member.kv_bytes > self.kv_bytes_left else ""

    def put(self, member: MemberRequest, sign: int = 1) -> None:
        """Take what the member requests. sign: -1 gives it back."""
        self.free_bytes -= sign * member.memory_bytes
        if member.gpus:
            taken = self._gpus_taken.get(member.gpu_resource, 0)
            self._gpus_taken[member.gpu_resource] = taken + sign * member.gpus
        self.kv_bytes_left -= sign * member.kv_bytes
        self.members += sign
        if self.free_cpus is not None:
            self.free_cpus -= sign * member.cpus
