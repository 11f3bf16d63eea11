"""Observes this machine for the planner: its memory and its GPUs. Decides nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

from languagepipes_operator.cli.gpus import gpus
from languagepipes_operator.planning.nodes import Node

# Limits of cgroup v2 and v1.
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def this_machine() -> Node:
    """Its whole memory, or the control group's limit where that is less, and the memory of every NVIDIA GPU."""
    return Node(
        name=platform.node() or "this machine",
        memory_bytes=min([_installed_bytes(), *_cgroup_limits()]),
        gpu_memory_bytes=tuple(gpu.memory_bytes for gpu in gpus()),
    )


def _installed_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_limits() -> Iterator[int]:
    for file in _CGROUP_LIMITS:
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text.isdecimal():  # "max" is none
            yield int(text)
