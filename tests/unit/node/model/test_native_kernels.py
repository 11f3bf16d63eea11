"""Our own matrix product equals torch's, at every edge of its tiles."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from languagepipes_node.model import kernels
from languagepipes_node.model.matrix import multiply, row_major
from support.native import levels

needs_kernels = pytest.mark.native


def test_it_was_built_wherever_there_is_a_compiler_and_a_cpu_for_it() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    if shutil.which("cc") and {"avx2", "fma", "f16c"} <= set(flags):
        assert kernels.available()


@pytest.fixture(params=levels(), ids=kernels.LEVELS.get, autouse=True)
def level(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    kernels.use_level(request.param)
    yield
    kernels.use_level(None)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 33])
@pytest.mark.parametrize("width", [1, 32, 65])
def test_it_equals_the_same_product_in_float32(dtype: torch.dtype, rows: int, width: int) -> None:
    for depth in (1, 8, 17, 1025, 2100):
        torch.manual_seed(depth)
        x, weight = torch.randn(rows, depth), torch.randn(width, depth).to(dtype)
        expected = x.double() @ weight.double().T
        assert torch.allclose(multiply(x, row_major(weight)).double(), expected, rtol=1e-5, atol=2e-4)


@needs_kernels
def test_it_refuses_what_it_cannot_multiply() -> None:
    with pytest.raises(ValueError, match=r"cannot multiply torch.float32 \(2, 4\) by a weight of 3 × 5"):
        multiply(torch.zeros(2, 4), row_major(torch.zeros(3, 5, dtype=torch.bfloat16)))
    with pytest.raises(ValueError, match="cannot multiply"):
        multiply(torch.zeros(4, 2).T, row_major(torch.zeros(3, 4)))
