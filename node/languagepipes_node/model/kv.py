"""The paged KV cache of one station: blocks × block_tokens slots for each of its layers, allocated once.

The layout is private to a station. On a CPU a layer is [2 × kv heads, slot, head_dim], keys before values: a run of
consecutive blocks is a view for every head, and a step's keys and values are written by one call. On a GPU it is
[keys or values, block, offset, kv head, head_dim], as paged attention kernels read it.
"""

from __future__ import annotations

import torch

from languagepipes_node.model.errors import OutOfMemory


class KvCache:
    """Writes are addressed by slot and idempotent: the same tokens written again leave the same cache."""

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Raises OutOfMemory with the bytes asked for."""
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.kv_heads = kv_heads
        self.paged = device.type == "cuda"
        shape: tuple[int, ...] = (2 * kv_heads, blocks * block_tokens, head_dim)
        if self.paged:
            shape = (2, blocks, block_tokens, kv_heads, head_dim)
        self.bytes = layers * 2 * kv_heads * blocks * block_tokens * head_dim * dtype.itemsize
        try:
            # Zeros, not uninitialised memory: attention multiplies slots that were never written by a weight of zero,
            # which a stray NaN would survive.
            self.layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU allocator raises a bare one
            raise OutOfMemory(
                f"KV cache: {self.bytes} bytes ({layers} layers, {blocks} blocks of {block_tokens} tokens) cannot be"
                f" allocated on {device}: give the member more memory, or plan fewer blocks"
            ) from error

    def write(self, layer: int, slots: torch.Tensor, keys_values: torch.Tensor) -> None:
        """Store a step's keys and values. slots: int64 [tokens]; keys_values: [tokens, 2 × kv heads, head_dim]."""
        cache = self.layers[layer]
        if self.paged:
            flat = cache.view(2, -1, *cache.shape[3:])  # [2, slot, kv head, head_dim]
            tokens = keys_values.shape[0]
            flat.index_copy_(1, slots, keys_values.view(tokens, 2, self.kv_heads, -1).transpose(0, 1).to(cache.dtype))
            return
        cache.index_copy_(1, slots, keys_values.transpose(0, 1).to(cache.dtype))
