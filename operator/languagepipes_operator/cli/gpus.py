"""This machine's GPUs and which member gets which. Found without importing torch."""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

_ASK_SECONDS = 20.0


@dataclass(frozen=True)
class Gpu:
    """One GPU. uuid: names it whatever the order of devices."""

    index: int
    uuid: str
    memory_bytes: int


def gpus(command: tuple[str, ...] = ("nvidia-smi",), environment: Mapping[str, str] = os.environ) -> tuple[Gpu, ...]:
    """This machine's NVIDIA GPUs by `nvidia-smi`, as far as CUDA_VISIBLE_DEVICES allows them."""
    try:
        answer = subprocess.run(
            [*command, "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    found = parse_gpus(answer.stdout)
    allowed = environment.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return found
    names = [name.strip() for name in allowed.split(",") if name.strip()]
    return tuple(gpu for gpu in found if any(name == str(gpu.index) or gpu.uuid.startswith(name) for name in names))


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """From nvidia-smi's CSV (MiB without units); rows without numbers, as for MIG parents, are left out."""
    found = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        try:
            index, uuid, total = row
            found.append(Gpu(int(index), uuid, int(total) * 1024**2))
        except ValueError:
            continue
    return tuple(found)
