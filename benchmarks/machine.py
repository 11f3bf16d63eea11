"""The header of a run: on what, with which versions and by which command the figures were taken."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_TELLING_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "avx512_fp16",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "i8mm",
    "sve",
)
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "uvicorn", "fastapi", "cryptography")
_ROOT = Path(__file__).resolve().parent.parent


def describe(module: str = "benchmarks.run") -> dict[str, Any]:
    """Processor, flags, cores, memory, versions, revision, load and the exact command, as plain JSON."""
    cpuinfo = _cpuinfo()
    flags = set(cpuinfo.get("flags", cpuinfo.get("Features", "")).split())
    return {
        "taken_at": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
        "processor": cpuinfo.get("model name", platform.processor() or platform.machine()),
        "flags": [flag for flag in _TELLING_FLAGS if flag in flags],
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "revision": _revision(),
        "load_average_before": [round(load, 2) for load in os.getloadavg()],
    }


def markdown(machine: dict[str, Any]) -> str:
    """The same, as the first lines of the report."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return "\n".join(
        [
            f"- Command: `{machine['command']}`, {machine['taken_at']}, revision {machine['revision']}",
            f"- Processor: {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
            f"flags that matter: {', '.join(machine['flags']) or 'none known'}",
            f"- Linux {machine['kernel']}, Python {machine['python']}, {packages}",
            f"- Load average before the run: {', '.join(map(str, machine['load_average_before']))}",
        ]
    )


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0))


def _cpuinfo() -> dict[str, str]:
    pairs: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, separator, value = line.partition(":")
        if not separator:
            break  # the first processor is enough
        pairs[name.strip()] = value.strip()
    return pairs


def _revision() -> str:
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
