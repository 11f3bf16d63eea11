"""How one step's packed tokens will attend to the paged cache: decided once a step, used by every layer.

The query heads that share one KV head are packed as rows of one small matrix, so that keys and values are read once
for all of them. Three ways:

- a decode token alone: its keys and values as a view of the cache (copied first if its blocks are scattered);
- several decode tokens: their blocks copied side by side, padded to the longest, one batched product for all;
- a prefill chunk: `model.chunk_attention`.

docs/decisions/0001-decoder-layer-on-cpu.md has the measurements behind the thresholds.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from languagepipes_node.model import chunk_attention
from languagepipes_node.model.chunk_attention import ChunkPlan
from languagepipes_node.model.step import Sequence, Span, Step

# Temporaries for copied or converted keys and values stay below this many elements (a layer at a time).
COPY_ELEMENTS = 8 << 20
# In float32, SDPA over a view beats copy-and-multiply from about this many cached tokens on; in bfloat16 it never does.
_COPY_TOKENS_FLOAT32 = 192
# One sequence in bfloat16: from here on two batched products beat SDPA.
_PRODUCT_TOKENS = 512


@dataclass(frozen=True)
class Sizes:
    """The shape of a model's attention."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads to a KV head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Single:
    """A decode token alone: packed token `token` over `span`.

    slot: of the span's first token; slots: of all, if they are scattered. products: two batched products instead of
    SDPA.
    """

    token: int
    span: Span
    slot: int
    slots: torch.Tensor | None
    products: bool


@dataclass(frozen=True)
class Chunk:
    """A prefill chunk: packed tokens `[token, token + count)`, the last of `span`. slot, slots: as of `Single`."""

    token: int
    count: int
    span: Span
    slot: int
    slots: torch.Tensor | None
    way: ChunkPlan


@dataclass(frozen=True)
class Padded:
    """Several decode tokens.

    tokens: int64 [n], their places in the batch; first: of the first, if they follow one another. blocks: int64
    [n × blocks of the longest]. mask: [kv heads × n, 1, slots], additive.
    """

    tokens: torch.Tensor
    first: int | None
    count: int
    blocks: torch.Tensor
    mask: torch.Tensor


Job = Single | Chunk | Padded


@dataclass(frozen=True)
class StepAttention:
    """All jobs of a step. dtype: of queries, scores and results; keys and values of another one are converted."""

    jobs: tuple[Job, ...]
    dtype: torch.dtype
    sizes: Sizes
    block_tokens: int
    scale: float


def plan(
    step: Step, sizes: Sizes, *, window: int | None, scale: float, dtype: torch.dtype, cache: torch.Tensor
) -> StepAttention:
    """How each sequence of a step will be attended to by layers with this window.

    dtype: of the layers' activations. cache: any layer's, for its dtype and device.
    """
    # Scores in the cache's dtype wherever that is no slower, so that keys and values are converted only where it is:
    # without 16-bit instructions one bfloat16 token alone is still best left to SDPA, float16 never.
    quick = cache.dtype != torch.float32 and quick_products(cache.dtype, cache.device)
    alone = cache.dtype == torch.bfloat16 and dtype == torch.bfloat16 and step.tokens == 1
    dtype = cache.dtype if quick or alone else torch.float32
    jobs: list[Job] = []
    decoding: list[tuple[Sequence, Span]] = []
    maker = _Maker(sizes, step.block_tokens, window, dtype, cache.device, quick)
    for sequence in step.sequences:
        span = sequence.span(window, step.block_tokens)
        if sequence.count > 1:
            jobs.append(maker.chunk(sequence, span))
        else:
            decoding.append((sequence, span))
    # A view is better than a copy only where nothing has to be converted.
    views = cache.device.type == "cpu" and dtype == cache.dtype == torch.float32
    for group in _groups(decoding, sizes, step.block_tokens, longest=_COPY_TOKENS_FLOAT32 if views else None):
        jobs.append(maker.single(*group[0]) if len(group) == 1 else maker.padded(group))
    return StepAttention(tuple(jobs), dtype, sizes, step.block_tokens, scale)


@functools.cache
def quick_products(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether batched products in this dtype are at least as fast as in float32 here. Measured: a few milliseconds."""
    if device.type != "cpu":
        return True
    seconds = {}
    for kind in (dtype, torch.float32):
        rows, keys = torch.ones(8, 4, 64, dtype=kind), torch.ones(8, 512, 64, dtype=kind)
        best = math.inf
        for _ in range(8):
            begin = time.perf_counter()
            torch.bmm(rows, keys.transpose(1, 2))
            best = min(best, time.perf_counter() - begin)
        seconds[kind] = best
    return seconds[dtype] <= seconds[torch.float32]


def _groups(
    decoding: list[tuple[Sequence, Span]], sizes: Sizes, block_tokens: int, *, longest: int | None
) -> list[list[tuple[Sequence, Span]]]:
    """Decode tokens that are worth padding to one length: at least half of what is copied is wanted.

    Those with more than `longest` cached tokens stay alone.
    """
    alone = [[pair] for pair in decoding if longest is not None and len(pair[1]) > longest]
    rest = [pair for pair in decoding if longest is None or len(pair[1]) <= longest]
    groups: list[list[tuple[Sequence, Span]]] = []
    wanted = 0
    for sequence, span in sorted(rest, key=lambda pair: (-len(pair[1]), pair[0].token)):
        if groups:
            group = groups[-1]
            copied = _blocks(group[0][1], block_tokens) * block_tokens * (len(group) + 1)
            fits = copied * 2 * sizes.kv_heads * sizes.head_dim <= COPY_ELEMENTS
            slack = block_tokens * (len(group) + 1)  # the last block of each is rarely full
            if fits and copied <= 2 * (wanted + len(span) + slack):
                group.append((sequence, span))
                wanted += len(span)
                continue
        groups.append([(sequence, span)])
        wanted = len(span)
    return alone + groups


def _blocks(span: Span, block_tokens: int) -> int:
    return -(-span.stop // block_tokens) - span.first // block_tokens


@dataclass(frozen=True)
class _Maker:
    """Makes the jobs of one step: index tensors and masks, on the cache's device."""

    sizes: Sizes
    block_tokens: int
    window: int | None
    dtype: torch.dtype
    device: torch.device
    quick: bool

    def single(self, sequence: Sequence, span: Span) -> Single:
        return Single(
            token=sequence.token,
            span=span,
            slot=span.slot or 0,
            slots=self._slots(sequence, span),
            products=self.quick and len(span) >= _PRODUCT_TOKENS,
        )

    def chunk(self, sequence: Sequence, span: Span) -> Chunk:
        return Chunk(
            token=sequence.token,
            count=sequence.count,
            span=span,
            slot=span.slot or 0,
            slots=self._slots(sequence, span),
            way=chunk_attention.plan(
                count=sequence.count,
                past=sequence.start - span.first,
                hidden=None if self.window is None else sequence.start + 1 - self.window - span.first,
                kv_heads=self.sizes.kv_heads,
                group=self.sizes.group,
                dtype=self.dtype,
                device=self.device,
            ),
        )

    def _slots(self, sequence: Sequence, span: Span) -> torch.Tensor | None:
        if span.slot is not None:
            return None
        return torch.from_numpy(sequence.slots(span.first, span.stop, self.block_tokens)).to(self.device)

    def padded(self, group: list[tuple[Sequence, Span]]) -> Padded:
        group = sorted(group, key=lambda pair: pair[0].token)
        most = max(_blocks(span, self.block_tokens) for _, span in group)
        blocks = np.empty((len(group), most), dtype=np.int64)
        begin = np.empty((len(group), 1), dtype=np.int64)
        end = np.empty((len(group), 1), dtype=np.int64)
        for row, (sequence, span) in enumerate(group):
            first = span.first // self.block_tokens
            own = sequence.blocks[first : -(-span.stop // self.block_tokens)]
            blocks[row, : len(own)] = own
            blocks[row, len(own) :] = own[-1]  # any block of its own: masked, and finite
            begin[row, 0] = span.first - first * self.block_tokens
            end[row, 0] = span.stop - first * self.block_tokens
        slot = np.arange(most * self.block_tokens)
        mask = self._additive(torch.from_numpy((slot < begin) | (slot >= end)).to(self.device))  # [n, slots]
        tokens = [sequence.token for sequence, _ in group]
        return Padded(
            tokens=torch.tensor(tokens, device=self.device),
            first=tokens[0] if tokens[-1] - tokens[0] == len(tokens) - 1 else None,
            count=len(tokens),
            blocks=torch.from_numpy(blocks.reshape(-1)).to(self.device),
            mask=mask.repeat(self.sizes.kv_heads, 1).unsqueeze(1),
        )

    def _additive(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(hidden, -math.inf)
