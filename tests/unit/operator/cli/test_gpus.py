"""Which GPUs a machine has, by a stand-in for nvidia-smi that prints what the real one prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from languagepipes_operator.cli.gpus import Gpu, gpus

FIRST = Gpu(0, "GPU-1c5e4b1a-0000", 81559 * 1024**2)
SECOND = Gpu(1, "GPU-9f2d7c3b-0000", 24564 * 1024**2)
TWO = f"0, {FIRST.uuid}, 81559\n1, {SECOND.uuid}, 24564\n"


def nvidia_smi(directory: Path, output: str, status: int = 0) -> tuple[str, ...]:
    script = directory / "nvidia-smi"
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{output}END\nexit {status}\n")
    script.chmod(0o755)
    return (str(script),)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, (FIRST, SECOND)),
        ("1", (SECOND,)),
        ("GPU-1c5e", (FIRST,)),
        ("0, 1", (FIRST, SECOND)),
        ("", ()),
        ("-1", ()),
    ],
)
def test_gpus_are_those_that_cuda_visible_devices_allows(
    tmp_path: Path, visible: str | None, expected: tuple[Gpu, ...]
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert gpus(nvidia_smi(tmp_path, TWO), environment) == expected


@pytest.mark.parametrize(
    ("output", "status"),
    [
        ("No devices were found\n", 6),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 9),
        ("", 0),
        ("0, GPU-1, [N/A]\n", 0),
    ],
)
def test_a_driver_that_finds_nothing_means_no_gpu(tmp_path: Path, output: str, status: int) -> None:
    assert gpus(nvidia_smi(tmp_path, output, status), {}) == ()


def test_no_nvidia_smi_means_no_gpu(tmp_path: Path) -> None:
    assert gpus((str(tmp_path / "nvidia-smi"),), {}) == ()
