"""The paged KV cache of one member: blocks × block_tokens slots for each of its layers, allocated once.

The layout is private to a member: a layer is [2 × kv heads, slot, head_dim], keys before values, so that a run of
consecutive blocks is a view for every head, and a step's keys and values are written by one call.
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
        shape = (2 * kv_heads, blocks * block_tokens, head_dim)
        self.bytes = layers * 2 * kv_heads * blocks * block_tokens * head_dim * dtype.itemsize
        try:
            # Zeros, not uninitialised memory: attention multiplies slots that were never written by a weight of zero,
            # which a stray NaN would survive. One allocation, so that one call clears slots in all layers.
            self._every_layer = torch.zeros((layers, *shape), dtype=dtype, device=device)
            self.layers = list(self._every_layer.unbind(0))
        except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU allocator raises a bare one
            raise OutOfMemory(
                f"KV cache: {self.bytes} bytes ({layers} layers, {blocks} blocks of {block_tokens} tokens) cannot be"
                f" allocated on {device}: give the member more memory, or plan fewer blocks"
            ) from error

    def write(self, layer: int, slots: torch.Tensor, keys_values: torch.Tensor) -> None:
        """Store a step's keys and values. slots: int64 [tokens]; keys_values: [tokens, 2 × kv heads, head_dim]."""
        cache = self.layers[layer]
        cache.index_copy_(1, slots, keys_values.transpose(0, 1).to(cache.dtype))

    def clear(self, first: int, stop: int) -> None:
        """Make the slots `[first, stop)` of every layer zeros again, whatever another sequence has left there."""
        self._every_layer[:, :, first:stop].zero_()
