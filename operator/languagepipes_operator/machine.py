"""Observes this machine for the planner: its memory and its GPUs. Decides nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from languagepipes_operator.planning.nodes import Node

_NVIDIA_SMI_TIMEOUT_SECONDS = 10.0
_MIB = 2**20


def this_machine() -> Node:
    """Total memory, or the control group's limit where that is less, and the memory of every NVIDIA GPU."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Node(
        name=platform.node() or "this machine",
        memory_bytes=min([total, *_cgroup_limits()]),
        gpu_memory_bytes=tuple(_gpu_memory_bytes()),
    )


def _cgroup_limits() -> Iterator[int]:
    """Limits of cgroup v2, then v1; "max" and unreadable files are no limit."""
    for file in (
        Path("/sys/fs/cgroup/memory.max"),
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    ):
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            yield int(text)


def _gpu_memory_bytes() -> Iterator[int]:
    """None where nvidia-smi is absent or fails: then there is no GPU that a member could use either."""
    if shutil.which("nvidia-smi") is None:
        return
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return
    for line in answer.stdout.splitlines():
        if line.strip().isdigit():
            yield int(line) * _MIB
