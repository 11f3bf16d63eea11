"""What the planner may know of the machines: a small snapshot, taken by others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """One machine. memory_bytes: its whole memory. gpu_memory_bytes: of each GPU."""

    name: str
    memory_bytes: int
    gpu_memory_bytes: tuple[int, ...] = ()
