"""Attention of one step's packed tokens over the paged cache.

The query heads that share one KV head are packed as rows of one small matrix, so that keys and values are read once
for all of them. Three ways, chosen once a step and used by every layer:

- a decode token alone: its keys and values as a view of the cache (copied first if its blocks are scattered);
- several decode tokens: their blocks copied side by side, padded to the longest, one batched product for all;
- a prefill chunk: one call with a causal mask over the chunk's tokens and all that came before.

docs/decisions/0001-decoder-layer-on-cpu.md has the measurements behind the thresholds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from languagepipes_node.model.step import Sequence, Span, Step

# Temporaries for copied or converted keys and values stay below this many elements (a layer at a time).
_COPY_ELEMENTS = 8 << 20
# Elements of one explicit mask; longer prefill chunks are cut into rows of queries.
_MASK_ELEMENTS = 4 << 20
# In float32, SDPA over a view beats copy-and-bmm from about this many cached tokens on; in bfloat16 it never does.
_COPY_TOKENS_FLOAT32 = 192
# One sequence in bfloat16: from here on two batched products beat SDPA.
_PRODUCT_TOKENS = 512


@dataclass(frozen=True)
class Single:
    """One sequence's queries: packed tokens `[token, token + count)` over `span`.

    slot: of the span's first token; slots: of all, if they are scattered. pieces: query
    rows `[begin, end)` each with an additive mask [end - begin, len(span)]; a None mask with `causal` means that the
    span is the chunk itself.
    """

    token: int
    count: int
    span: Span
    slot: int
    slots: torch.Tensor | None
    pieces: tuple[tuple[int, int, torch.Tensor | None], ...]
    causal: bool


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


Job = Single | Padded


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


def plan(step: Step, sizes: Sizes, window: int | None, dtype: torch.dtype, cache: torch.Tensor) -> list[Job]:
    """How each sequence of a step will be attended to by layers with this window.

    dtype: of the queries. cache: any layer's, for its dtype and device.
    """
    device = cache.device
    jobs: list[Job] = []
    decoding: list[tuple[Sequence, Span]] = []
    for sequence in step.sequences:
        span = sequence.span(window, step.block_tokens)
        if sequence.count > 1:
            jobs.append(_single(sequence, span, window, step.block_tokens, dtype, device))
        else:
            decoding.append((sequence, span))
    for group in _groups(
        decoding, sizes, step.block_tokens, plain=device.type == "cpu" and dtype == cache.dtype == torch.float32
    ):
        if len(group) == 1:
            sequence, span = group[0]
            jobs.append(_single(sequence, span, window, step.block_tokens, dtype, device))
        else:
            jobs.append(_padded(group, sizes, step.block_tokens, dtype, device))
    return jobs


def attend(
    jobs: list[Job], queries: torch.Tensor, cache: torch.Tensor, sizes: Sizes, block_tokens: int, scale: float
) -> torch.Tensor:
    """queries: [tokens, heads, head_dim], rotated. cache: one layer's. Returns [tokens, heads × head_dim]."""
    tokens = queries.shape[0]
    if len(jobs) == 1 and isinstance(jobs[0], Single) and jobs[0].count == 1:
        return _decode_one(jobs[0], queries, cache, sizes, scale).view(1, -1)
    out = torch.empty((tokens, sizes.heads, sizes.head_dim), dtype=queries.dtype, device=queries.device)
    for job in jobs:
        if isinstance(job, Padded):
            _decode_many(job, queries, cache, sizes, block_tokens, scale, out)
        elif job.count == 1:
            out[job.token] = _decode_one(job, queries[job.token], cache, sizes, scale).view(sizes.heads, -1)
        else:
            _prefill(job, queries, cache, sizes, scale, out)
    return out.view(tokens, -1)


def _groups(
    decoding: list[tuple[Sequence, Span]], sizes: Sizes, block_tokens: int, *, plain: bool
) -> list[list[tuple[Sequence, Span]]]:
    """Decode tokens that are worth padding to one length: at least half of what is copied is wanted."""
    groups: list[list[tuple[Sequence, Span]]] = []
    wanted = 0
    for sequence, span in sorted(decoding, key=lambda pair: (-len(pair[1]), pair[0].token)):
        alone = plain and len(span) > _COPY_TOKENS_FLOAT32
        if groups and not alone:
            group = groups[-1]
            longest = _blocks(group[0][1], block_tokens) * block_tokens
            copied = longest * (len(group) + 1)
            fits = copied * 2 * sizes.kv_heads * sizes.head_dim <= _COPY_ELEMENTS
            if fits and copied <= 2 * (wanted + len(span)) + 2 * block_tokens * (len(group) + 1):
                group.append((sequence, span))
                wanted += len(span)
                continue
        groups.append([(sequence, span)])
        wanted = len(span)
        if alone:
            wanted = -(1 << 40)  # nobody joins it
    return groups


def _blocks(span: Span, block_tokens: int) -> int:
    return -(-span.stop // block_tokens) - span.first // block_tokens


def _padded(
    group: list[tuple[Sequence, Span]], sizes: Sizes, block_tokens: int, dtype: torch.dtype, device: torch.device
) -> Padded:
    group = sorted(group, key=lambda pair: pair[0].token)
    most = max(_blocks(span, block_tokens) for _, span in group)
    blocks = np.empty((len(group), most), dtype=np.int64)
    begin = np.empty((len(group), 1), dtype=np.int64)
    end = np.empty((len(group), 1), dtype=np.int64)
    for row, (sequence, span) in enumerate(group):
        first = span.first // block_tokens
        own = sequence.blocks[first : -(-span.stop // block_tokens)]
        blocks[row, : len(own)] = own
        blocks[row, len(own) :] = own[-1]  # any block of its own: masked, and finite
        begin[row, 0] = span.first - first * block_tokens
        end[row, 0] = span.stop - first * block_tokens
    slot = np.arange(most * block_tokens)
    hidden = torch.from_numpy((slot < begin) | (slot >= end)).to(device)  # [n, slots]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -math.inf)
    mask = mask.expand(sizes.kv_heads, *mask.shape).reshape(sizes.kv_heads * len(group), 1, -1)
    tokens = [sequence.token for sequence, _ in group]
    together = tokens[-1] - tokens[0] == len(tokens) - 1
    return Padded(
        tokens=torch.tensor(tokens, device=device),
        first=tokens[0] if together else None,
        count=len(tokens),
        blocks=torch.from_numpy(blocks.reshape(-1)).to(device),
        mask=mask,
    )


def _single(
    sequence: Sequence, span: Span, window: int | None, block_tokens: int, dtype: torch.dtype, device: torch.device
) -> Single:
    slots = None
    if span.slot is None:
        slots = torch.from_numpy(sequence.slots(span.first, span.stop, block_tokens)).to(device)
    slides = window is not None and sequence.length > window
    causal = sequence.count > 1 and sequence.start == 0 and not slides
    pieces: list[tuple[int, int, torch.Tensor | None]] = []
    if sequence.count == 1 or causal:
        pieces.append((0, sequence.count, None))
    else:
        rows = max(1, _MASK_ELEMENTS // len(span))
        for begin in range(0, sequence.count, rows):
            end = min(begin + rows, sequence.count)
            query = torch.arange(sequence.start + begin, sequence.start + end, device=device)[:, None]
            key = torch.arange(span.first, span.stop, device=device)[None, :]
            hidden = key > query
            if window is not None:
                hidden |= key <= query - window
            pieces.append(
                (begin, end, torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -math.inf))
            )
    return Single(sequence.token, sequence.count, span, span.slot or 0, slots, tuple(pieces), causal)


def _keys_values(
    job: Single, cache: torch.Tensor, kv_heads: int, begin: int, end: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of kv heads `[begin, end)`, each [end - begin, len(span), head_dim] in `dtype`."""
    keys, values = cache[begin:end], cache[kv_heads + begin : kv_heads + end]
    if job.slots is None:
        keys, values = (
            keys.narrow(1, job.slot, len(job.span)),
            values.narrow(1, job.slot, len(job.span)),
        )
    else:
        keys, values = keys.index_select(1, job.slots), values.index_select(1, job.slots)
    if keys.dtype != dtype:
        keys, values = keys.to(dtype), values.to(dtype)
    return keys, values


def _heads_at_once(job: Single, cache: torch.Tensor, sizes: Sizes, dtype: torch.dtype) -> int:
    """All, unless keys and values have to be copied or converted and are too many for that."""
    if job.slots is None and cache.dtype == dtype:
        return sizes.kv_heads
    return min(sizes.kv_heads, max(1, _COPY_ELEMENTS // (2 * len(job.span) * sizes.head_dim)))


def _decode_one(job: Single, query: torch.Tensor, cache: torch.Tensor, sizes: Sizes, scale: float) -> torch.Tensor:
    """query: [heads, head_dim] (or with a leading 1). Returns [kv heads, group, head_dim]."""
    rows = query.reshape(sizes.kv_heads, sizes.group, sizes.head_dim)
    at_once = _heads_at_once(job, cache, sizes, query.dtype)
    parts = []
    for begin in range(0, sizes.kv_heads, at_once):
        end = min(begin + at_once, sizes.kv_heads)
        keys, values = _keys_values(job, cache, sizes.kv_heads, begin, end, query.dtype)
        part = rows[begin:end]
        if query.dtype == torch.bfloat16 and len(job.span) >= _PRODUCT_TOKENS:
            weights = torch.bmm(part, keys.transpose(1, 2)).mul_(scale).softmax(-1)
            parts.append(torch.bmm(weights, values))
        else:
            parts.append(F.scaled_dot_product_attention(part[None], keys[None], values[None], scale=scale)[0])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _decode_many(
    job: Padded,
    queries: torch.Tensor,
    cache: torch.Tensor,
    sizes: Sizes,
    block_tokens: int,
    scale: float,
    out: torch.Tensor,
) -> None:
    n, kv_heads, dim = job.count, sizes.kv_heads, sizes.head_dim
    copied = cache.view(2 * kv_heads, -1, block_tokens * dim).index_select(1, job.blocks)
    if copied.dtype != queries.dtype:
        copied = copied.to(queries.dtype)
    copied = copied.view(2, kv_heads * n, -1, dim)  # [keys or values, kv head × sequence, slot, head_dim]
    rows = queries.narrow(0, job.first, n) if job.first is not None else queries.index_select(0, job.tokens)
    rows = rows.view(n, kv_heads, sizes.group, dim).transpose(0, 1).reshape(kv_heads * n, sizes.group, dim)
    weights = torch.baddbmm(job.mask, rows, copied[0].transpose(1, 2), alpha=scale).softmax(-1)
    result = torch.bmm(weights, copied[1])  # [kv head × sequence, group, head_dim]
    result = result.view(kv_heads, n, sizes.group, dim).transpose(0, 1).reshape(n, sizes.heads, dim)
    if job.first is not None:
        out.narrow(0, job.first, n).copy_(result)
    else:
        out.index_copy_(0, job.tokens, result)


def _prefill(
    job: Single, queries: torch.Tensor, cache: torch.Tensor, sizes: Sizes, scale: float, out: torch.Tensor
) -> None:
    shape = (job.count, sizes.kv_heads, sizes.group, sizes.head_dim)
    own = queries.narrow(0, job.token, job.count).view(shape).permute(1, 2, 0, 3)  # [kv head, group, token, head_dim]
    target = out.narrow(0, job.token, job.count).view(shape).permute(1, 2, 0, 3)
    at_once = _heads_at_once(job, cache, sizes, queries.dtype)
    for begin in range(0, sizes.kv_heads, at_once):
        end = min(begin + at_once, sizes.kv_heads)
        keys, values = _keys_values(job, cache, sizes.kv_heads, begin, end, queries.dtype)
        # The group's heads share keys and values by a stride of zero, not by a copy.
        keys = keys[:, None].expand(-1, sizes.group, -1, -1)
        values = values[:, None].expand(-1, sizes.group, -1, -1)
        for first, last, mask in job.pieces:
            target[begin:end, :, first:last] = F.scaled_dot_product_attention(
                own[begin:end, :, first:last], keys, values, attn_mask=mask, is_causal=job.causal, scale=scale
            )
