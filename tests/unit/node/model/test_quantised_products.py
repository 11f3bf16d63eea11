"""The native products of quantised weights: exact but for the rounding of activations, at every level, for any rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from languagepipes_node.model import kernels, packed
from languagepipes_node.model.matrix import multiply
from languagepipes_node.model.quantised import QuantisedWeight, StackedWeight
from support.quantised_models import rounded_activations

pytestmark = pytest.mark.native

KINDS = [(8, 32), (8, 16), (4, 32)]
SHAPES = [(1, 64, 64), (7, 70, 576), (13, 96, 1600), (64, 40, 2048)]


@pytest.fixture
def own_level() -> Iterator[None]:
    yield
    kernels.use_level(None)


def random_weight(rows: int, depth: int, bits: int, group: int, seed: int = 0) -> QuantisedWeight:
    """Any bits, -128 among them."""
    draw = torch.Generator().manual_seed(seed)
    scales = (torch.rand(rows, depth // group, generator=draw) * 0.01).half()
    if bits == 8:
        return QuantisedWeight(torch.randint(-128, 128, (rows, depth), dtype=torch.int8, generator=draw), scales)
    values = torch.randint(0, 256, (rows, depth // 2), dtype=torch.uint8, generator=draw)
    return QuantisedWeight(values, scales, -scales * 7)


def copy_of(weight: QuantisedWeight) -> QuantisedWeight:
    return QuantisedWeight(*(tensor.clone() for tensor in weight.tensors))


@pytest.mark.parametrize(("rows", "width", "depth"), SHAPES)
@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_products_are_those_of_rounded_activations(bits: int, group: int, rows: int, width: int, depth: int) -> None:
    weight = random_weight(width, depth, bits, group)
    x = torch.randn(rows, depth, generator=torch.Generator().manual_seed(1))
    expected = (rounded_activations(x).double() @ weight.widened(torch.float32).double().t()).float()
    product = multiply(x, packed.pack(copy_of(weight)))
    # A value in the middle between two whole numbers may go either way.
    torch.testing.assert_close(product, expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_every_level_and_number_of_rows_gives_the_same_bits(bits: int, group: int, own_level: None) -> None:
    matrix = packed.pack(random_weight(72, 1600, bits, group))
    x = torch.randn(79, 1600, generator=torch.Generator().manual_seed(2))
    whole = multiply(x, matrix)
    alone = torch.cat([multiply(row[None].contiguous(), matrix) for row in x])
    assert torch.equal(alone, whole)
    for level in range(kernels.AVX2, kernels.library()[1] + 1):
        kernels.use_level(level)
        # With AVX2 other kernels serve 1 to 7 rows, 8 and more, and what is left of 64 rows and of tiles of 4.
        for rows in (3, 7, 8, 9, 21, 64, 67, 72, 79):
            assert torch.equal(multiply(x[:rows].contiguous(), matrix), alone[:rows])
    kernels.use_level(kernels.AVX2)
    assert torch.equal(multiply(x, matrix), whole)


def test_a_stack_gives_what_its_parts_give() -> None:
    parts = [
        random_weight(height, 576, *kind, seed)
        for seed, (height, kind) in enumerate(zip((64, 32, 40), KINDS, strict=True))
    ]
    x = torch.randn(5, 576, generator=torch.Generator().manual_seed(3))
    expected = torch.cat([multiply(x, packed.pack(copy_of(part))) for part in parts], dim=1)
    stack = StackedWeight(tuple(parts))
    assert packed.packable(stack)
    assert torch.equal(multiply(x, packed.pack(stack)), expected)


@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_rows_are_looked_up_in_panels(bits: int, group: int) -> None:
    weight = random_weight(70, 64, bits, group)
    ids = torch.tensor([0, 69, 31, 32, 31])
    expected = weight.picked(ids).widened(torch.float32)
    assert torch.equal(packed.look_up(packed.pack(copy_of(weight)), ids, torch.float32), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_activations_that_are_not_finite_stay_visible(value: float) -> None:
    matrix = packed.pack(random_weight(32, 64, 8, 32))
    x = torch.zeros(2, 64)
    x[1, 40] = value
    product = multiply(x, matrix)
    assert torch.equal(product[0], torch.zeros(32))
    assert not product[1].isfinite().any()


def test_zeros_and_tiny_activations_give_finite_results() -> None:
    matrix = packed.pack(random_weight(32, 64, 4, 32))
    x = torch.full((3, 64), 1e-38)
    x[1] = 0
    x[2] = 1e30
    assert multiply(x, matrix).isfinite().all()
