"""Attention of a prompt's chunk: all of what came before it in the sequence, and of the chunk what is not later.

The query heads that share one KV head are rows of one matrix. No mask is larger than a tile of the chunk. Four ways:

- PRODUCTS: a tile of queries after the other, each by two batched products, with a softmax in between, over the keys up
  to the tile's end. For CPUs where 16-bit products are fast, which torch's attention does not use.
- MERGED: all that came before without a mask, the chunk causally, joined by the logarithms of their sums of weights.
  For other CPUs.
- LOWER_RIGHT: one call, causal from the lower right corner: torch's kernels for GPUs take that without a mask.
- MASKED: a tile of queries after the other, with a mask over its keys. Where a window slides, except for PRODUCTS.

docs/decisions/0009-long-prompts.md has the measurements.
"""

from __future__ import annotations

import enum
import functools
import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Scores of one tile, so that they are still in a cache when they are read again.
_SCORES = 2 << 20
# Queries in a tile: fewer than this many, and KV heads take turns instead; and never less or more than these.
_GOOD_TILE, _LEAST_TILE, _MOST_TILE = 32, 4, 128
_MASKED_TILE = 128


class Way(enum.Enum):
    """How a chunk is computed; see above."""

    PRODUCTS = enum.auto()
    MERGED = enum.auto()
    LOWER_RIGHT = enum.auto()
    MASKED = enum.auto()


@dataclass(frozen=True)
class Edge:
    """What a tile's queries must not see: `mask` [queries, width] is added to the scores from `column` on."""

    column: int
    mask: torch.Tensor


@dataclass(frozen=True)
class Tile:
    """Queries `[begin, end)` of the chunk over tokens `[first, stop)` of the span. MASKED has one edge at most."""

    begin: int
    end: int
    first: int
    stop: int
    edges: tuple[Edge, ...]


@dataclass(frozen=True)
class ChunkPlan:
    """How one chunk is computed in every layer of a step.

    past: how many tokens of the span come before the chunk. heads_at_once: KV heads of one pass; None: all. tiles: of
    PRODUCTS and MASKED. scratch: [2, elements], of PRODUCTS: the scores and the weights of its largest tile.
    """

    way: Way
    past: int
    heads_at_once: int | None = None
    tiles: tuple[Tile, ...] = ()
    scratch: torch.Tensor | None = None


def plan(
    *,
    count: int,
    past: int,
    hidden: int | None,
    kv_heads: int,
    group: int,
    dtype: torch.dtype,
    device: torch.device,
    way: Way | None = None,
) -> ChunkPlan:
    """How a chunk of `count` tokens that follow `past` others of its span is computed.

    hidden: query i of the chunk does not see the first `hidden + i` tokens of the span (none, if that is negative);
    None without a window. group: query heads to a KV head. dtype: of the arithmetic. way: for tests and measurements;
    None chooses.
    """
    way = way or _best_way(dtype, device)
    slides = hidden is not None and hidden + count - 1 > 0
    if slides and way is not Way.PRODUCTS:
        way = Way.MASKED
    if way in (Way.MERGED, Way.LOWER_RIGHT):
        return ChunkPlan(way, past)
    size, heads_at_once = _MASKED_TILE, kv_heads
    if way is Way.PRODUCTS:
        size = _tile(kv_heads * group * (past + count))
        if size < _GOOD_TILE:
            size, heads_at_once = _tile(group * (past + count)), 1
    edges = _Edges(dtype, device)
    tiles = []
    for begin in range(0, count, size):
        end, first = min(begin + size, count), 0
        at = []
        if hidden is not None and hidden + end - 1 > 0:
            first = max(0, hidden + begin)
            if width := hidden + end - 1 - first:
                at.append(Edge(0, edges.window(end - begin, width)))
        if end - begin > 1:
            at.append(Edge(past + begin - first, edges.causal(end - begin)))
        if way is Way.MASKED:
            at = edges.joined(end - begin, past + end - first, at)
        tiles.append(Tile(begin, end, first, past + end, tuple(at)))
    scratch = None
    if way is Way.PRODUCTS:
        most = max((tile.end - tile.begin) * (tile.stop - tile.first) for tile in tiles)
        scratch = torch.empty((2, heads_at_once * group * most), dtype=dtype, device=device)
    return ChunkPlan(way, past, heads_at_once, tuple(tiles), scratch)


def _tile(scores_of_a_query: int) -> int:
    size = _SCORES // scores_of_a_query
    return min(size // 16 * 16, _MOST_TILE) if size >= 16 else max(size, _LEAST_TILE)


def _best_way(dtype: torch.dtype, device: torch.device) -> Way:
    if device.type != "cpu":
        return Way.LOWER_RIGHT
    return Way.PRODUCTS if dtype != torch.float32 and products_are_faster(dtype) else Way.MERGED


@functools.cache
def products_are_faster(dtype: torch.dtype) -> bool:
    """Whether PRODUCTS are faster than MERGED in this dtype on this CPU. Measured: some ten milliseconds."""
    count, past, kv_heads, group, head_dim = 64, 1024, 2, 4, 64
    queries = torch.ones((count, kv_heads, group, head_dim), dtype=dtype)
    keys = torch.ones((kv_heads, past + count, head_dim), dtype=dtype)
    out, device = torch.empty_like(queries), queries.device
    seconds = dict.fromkeys((Way.PRODUCTS, Way.MERGED), math.inf)
    for _ in range(6):
        for way in seconds:
            chunk = plan(
                count=count,
                past=past,
                hidden=None,
                kv_heads=kv_heads,
                group=group,
                dtype=dtype,
                device=device,
                way=way,
            )
            begin = time.perf_counter()
            attend(chunk, queries, keys, keys, 1.0, out)
            seconds[way] = min(seconds[way], time.perf_counter() - begin)
    return seconds[Way.PRODUCTS] < seconds[Way.MERGED]


class _Edges:
    """Additive masks; most tiles of a chunk share theirs."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._causal: dict[int, torch.Tensor] = {}
        self._window: dict[tuple[int, int], torch.Tensor] = {}
        self._joined: dict[tuple[int, ...], torch.Tensor] = {}

    def causal(self, queries: int) -> torch.Tensor:
        """[queries, queries]: none sees those after it."""
        if queries not in self._causal:
            self._causal[queries] = self._hide(queries, queries).triu_(1)
        return self._causal[queries]

    def window(self, queries: int, width: int) -> torch.Tensor:
        """[queries, width]: the last one sees none of these tokens, each before it sees one more, from the right."""
        if (queries, width) not in self._window:
            self._window[queries, width] = self._hide(queries, width).tril_(width - queries)
        return self._window[queries, width]

    def joined(self, queries: int, width: int, edges: list[Edge]) -> list[Edge]:
        """The same as one mask [queries, width]."""
        key = (queries, width, *(number for edge in edges for number in (edge.column, edge.mask.shape[1])))
        if edges and key not in self._joined:
            mask = torch.zeros((queries, width), dtype=self._dtype, device=self._device)
            for edge in edges:
                mask.narrow(1, edge.column, edge.mask.shape[1]).add_(edge.mask)
            self._joined[key] = mask
        return [Edge(0, self._joined[key])] if edges else []

    def _hide(self, queries: int, width: int) -> torch.Tensor:
        return torch.full((queries, width), -math.inf, dtype=self._dtype, device=self._device)


def attend(
    chunk: ChunkPlan,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    out: torch.Tensor,
) -> None:
    """queries, out: [count, n, group, head_dim] of n KV heads. keys, values: [n, span, head_dim]. All in one dtype."""
    if chunk.scratch is not None:
        _by_products(chunk.tiles, chunk.scratch, queries, keys, values, scale, out)
    elif chunk.way is Way.MERGED and chunk.past:
        _merged(chunk.past, queries, keys, values, scale, out)
    else:
        _by_sdpa(chunk, queries, keys, values, scale, out)


def _by_products(
    tiles: tuple[Tile, ...],
    scratch: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    out: torch.Tensor,
) -> None:
    # `baddbmm` would take the scale, but copies all scores once more.
    _, n, group, dim = queries.shape
    rows = torch.mul(queries.transpose(0, 1).contiguous(), scale)  # [n, count, group, head_dim]
    for tile in tiles:
        length, width = tile.end - tile.begin, tile.stop - tile.first
        own = rows[:, tile.begin : tile.end].reshape(n, length * group, dim)
        shape = (n, length * group, width)
        scores, weights = (buffer[: math.prod(shape)].view(shape) for buffer in scratch)
        torch.bmm(own, keys[:, tile.first : tile.stop].transpose(1, 2), out=scores)
        for edge in tile.edges:
            part = scores.view(n, length, group, width).narrow(-1, edge.column, edge.mask.shape[1])
            part.add_(edge.mask[:, None])
        torch.softmax(scores, -1, out=weights)
        result = torch.bmm(weights, values[:, tile.first : tile.stop])
        out[tile.begin : tile.end].copy_(result.view(n, length, group, dim).transpose(0, 1))


def _merged(
    past: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, out: torch.Tensor
) -> None:
    count, n, group, dim = queries.shape
    # SDPA takes the logarithm of the sum from this operation, and does not hand it on.
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    own = queries.permute(1, 2, 0, 3)  # [n, group, count, head_dim]
    rows = own.reshape(n, 1, group * count, dim)
    before, log_before = flash(rows, keys[:, None, :past], values[:, None, :past], scale=scale)
    after, log_after = flash(
        own, _shared(keys[:, past:], group), _shared(values[:, past:], group), is_causal=True, scale=scale
    )
    share = torch.sigmoid(log_before.reshape(n, group, count) - log_after).to(before.dtype)[..., None]
    out.permute(1, 2, 0, 3).copy_(torch.lerp(after, before.reshape(own.shape), share))


def _by_sdpa(
    chunk: ChunkPlan,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    out: torch.Tensor,
) -> None:
    count, _, group, _ = queries.shape
    own, target = queries.permute(1, 2, 0, 3), out.permute(1, 2, 0, 3)  # [n, group, count, head_dim]
    keys, values = _shared(keys, group), _shared(values, group)
    if not chunk.tiles:
        mask = _lower_right(count, chunk.past + count) if chunk.past else None
        result = F.scaled_dot_product_attention(own, keys, values, attn_mask=mask, is_causal=mask is None, scale=scale)
        target.copy_(result)
    for tile in chunk.tiles:
        target[:, :, tile.begin : tile.end] = F.scaled_dot_product_attention(
            own[:, :, tile.begin : tile.end],
            keys[:, :, tile.first : tile.stop],
            values[:, :, tile.first : tile.stop],
            attn_mask=tile.edges[0].mask if tile.edges else None,
            scale=scale,
        )


def _lower_right(queries: int, keys: int) -> torch.Tensor:
    """torch's mask for queries that are the last of the keys. Imported when it is wanted: its module imports
    torch._dynamo, which takes each process a second."""
    from torch.nn.attention.bias import causal_lower_right

    mask: torch.Tensor = causal_lower_right(queries, keys)
    return mask


def _shared(heads: torch.Tensor, group: int) -> torch.Tensor:
    """[n, span, head_dim] → [n, group, span, head_dim]: by a stride of zero, not by a copy."""
    return heads[:, None].expand(-1, group, -1, -1)
