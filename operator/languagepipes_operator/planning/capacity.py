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
        self.free_gpus = node.free_gpus
        self.free_cpus = node.free_cpus
        self.kv_bytes_left = int(node.memory_bytes * CPU_KV_FRACTION)
        self.gpu_memory = min(node.gpu_memory_bytes, default=None)
        self.members = 0
        self._allowed: dict[int, bool] = {}

    def why_not(self, member: MemberRequest, *, cap_kv: bool) -> str:
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
        return "kv" if cap_kv and member.kv_bytes > self.kv_bytes_left else ""

    def put(self, member: MemberRequest, sign: int = 1) -> None:
        """Take what the member requests. sign: -1 gives it back."""
        self.free_bytes -= sign * member.memory_bytes
        self.free_gpus -= sign * member.gpus
        self.kv_bytes_left -= sign * member.kv_bytes
        self.members += sign
        if self.free_cpus is not None:
            self.free_cpus -= sign * member.cpus
