"""A prompt's chunk is attended to alike every way: after whatever came before it, behind a window, in tiles."""

from __future__ import annotations

import math

import pytest
import torch
from languagepipes_node.model import chunk_attention
from languagepipes_node.model.chunk_attention import Way

CPU = torch.device("cpu")
GROUP, KV_HEADS, HEAD_DIM = 3, 2, 16
SCALE = 0.3


def expected(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, past: int, hidden: int | None
) -> torch.Tensor:
    """In float64, with one mask over everything."""
    count, span = queries.shape[0], keys.shape[1]
    query, key = torch.arange(count)[:, None], torch.arange(span)[None, :]
    masked = key > query + past
    if hidden is not None:
        masked |= key < query + hidden
    scores = torch.einsum("cngd,nkd->ngck", queries.double(), keys.double()) * SCALE
    return torch.einsum("ngck,nkd->cngd", scores.masked_fill(masked, -math.inf).softmax(-1), values.double())


@pytest.mark.parametrize("way", list(Way), ids=lambda way: way.name)
@pytest.mark.parametrize(
    ("count", "past", "hidden"),
    [
        (2, 0, None),
        (200, 0, None),
        (1, 50, None),
        (200, 333, None),
        (200, 40, -60),  # a window that starts to slide within the chunk
        (200, 40, 0),  # one that is as long as what came before
        (200, 6, 0),  # one that is shorter than a tile
        (50, 100, -200),  # one that does not slide yet
    ],
)
def test_every_way_computes_the_same(way: Way, count: int, past: int, hidden: int | None) -> None:
    torch.manual_seed(count + past)
    queries = torch.randn(count, KV_HEADS, GROUP, HEAD_DIM)
    keys, values = torch.randn(2, KV_HEADS, past + count, HEAD_DIM)
    out = torch.full_like(queries, math.nan)
    chunk = chunk_attention.plan(
        count=count,
        past=past,
        hidden=hidden,
        kv_heads=KV_HEADS,
        group=GROUP,
        dtype=queries.dtype,
        device=CPU,
        way=way,
    )
    if chunk.scratch is not None:
        chunk.scratch.fill_(math.nan)

    chunk_attention.attend(chunk, queries, keys, values, SCALE, out)

    torch.testing.assert_close(out, expected(queries, keys, values, past, hidden).float(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_products_are_within_the_rounding_of_their_dtype(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    queries = torch.randn(100, KV_HEADS, GROUP, HEAD_DIM).to(dtype)
    keys, values = torch.randn(2, KV_HEADS, 400, HEAD_DIM).to(dtype)
    out = torch.empty_like(queries)
    chunk = chunk_attention.plan(
        count=100, past=300, hidden=None, kv_heads=KV_HEADS, group=GROUP, dtype=dtype, device=CPU, way=Way.PRODUCTS
    )

    chunk_attention.attend(chunk, queries, keys, values, SCALE, out)

    right = expected(queries, keys, values, 300, None)
    assert float((out.double() - right).norm() / right.norm()) < 2 * torch.finfo(dtype).eps


def test_scores_of_a_tile_are_bounded_however_long_the_sequence() -> None:
    for past in (0, 4_000, 130_000):
        chunk = chunk_attention.plan(
            count=512,
            past=past,
            hidden=None,
            kv_heads=8,
            group=4,
            dtype=torch.bfloat16,
            device=CPU,
            way=Way.PRODUCTS,
        )
        assert chunk.scratch is not None
        assert chunk.scratch.shape[1] <= 4 << 20
        assert [tile.begin for tile in chunk.tiles] == [0, *(tile.end for tile in chunk.tiles[:-1])]
        assert chunk.tiles[-1].stop == past + 512
