"""Attention of one layer over its paged cache, as `model.attention_plan` has decided it for the step."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from languagepipes_node.model import chunk_attention
from languagepipes_node.model.attention_plan import COPY_ELEMENTS, Chunk, Padded, Single, Sizes, StepAttention


def attend(todo: StepAttention, queries: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    """queries: [tokens, heads, head_dim], rotated. cache: one layer's. Returns [tokens, heads × head_dim]."""
    dtype, sizes, scale = queries.dtype, todo.sizes, todo.scale
    queries = queries.to(todo.dtype)
    tokens = queries.shape[0]
    if len(todo.jobs) == 1 and isinstance(todo.jobs[0], Single):
        return _decode_one(todo.jobs[0], queries, cache, sizes, scale).view(1, -1).to(dtype)
    out = torch.empty((tokens, sizes.heads, sizes.head_dim), dtype=queries.dtype, device=queries.device)
    for job in todo.jobs:
        if isinstance(job, Padded):
            _decode_many(job, queries, cache, sizes, todo.block_tokens, scale, out)
        elif isinstance(job, Single):
            out[job.token] = _decode_one(job, queries[job.token], cache, sizes, scale).view(sizes.heads, -1)
        else:
            _prefill(job, queries, cache, sizes, scale, out)
    return out.view(tokens, -1).to(dtype)


def _keys_values(
    job: Single | Chunk, cache: torch.Tensor, kv_heads: int, begin: int, end: int, dtype: torch.dtype
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


def _heads_at_once(job: Single | Chunk, cache: torch.Tensor, sizes: Sizes, dtype: torch.dtype) -> int:
    """All, unless keys and values have to be copied or converted and are too many for that."""
    if job.slots is None and cache.dtype == dtype:
        return sizes.kv_heads
    return min(sizes.kv_heads, max(1, COPY_ELEMENTS // (2 * len(job.span) * sizes.head_dim)))


def _decode_one(job: Single, query: torch.Tensor, cache: torch.Tensor, sizes: Sizes, scale: float) -> torch.Tensor:
    """query: [heads, head_dim] (or with a leading 1). Returns [kv heads, group, head_dim]."""
    rows = query.reshape(sizes.kv_heads, sizes.group, sizes.head_dim)
    at_once = _heads_at_once(job, cache, sizes, query.dtype)
    parts = []
    for begin in range(0, sizes.kv_heads, at_once):
        end = min(begin + at_once, sizes.kv_heads)
        keys, values = _keys_values(job, cache, sizes.kv_heads, begin, end, query.dtype)
        part = rows[begin:end]
        if job.products:
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
    job: Chunk, queries: torch.Tensor, cache: torch.Tensor, sizes: Sizes, scale: float, out: torch.Tensor
) -> None:
    shape = (job.count, sizes.kv_heads, sizes.group, sizes.head_dim)
    own = queries.narrow(0, job.token, job.count).view(shape)
    target = out.narrow(0, job.token, job.count).view(shape)
    at_once = min(_heads_at_once(job, cache, sizes, queries.dtype), job.way.heads_at_once or sizes.kv_heads)
    for begin in range(0, sizes.kv_heads, at_once):
        end = min(begin + at_once, sizes.kv_heads)
        keys, values = _keys_values(job, cache, sizes.kv_heads, begin, end, queries.dtype)
        chunk_attention.attend(job.way, own[:, begin:end], keys, values, scale, target[:, begin:end])
