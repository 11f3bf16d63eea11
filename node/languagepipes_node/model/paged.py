"""Attention of one step's packed tokens over the paged cache, on a GPU: torch's kernel with block tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch

from languagepipes_node.model.attention import Sizes
from languagepipes_node.model.kv import KvCache
from languagepipes_node.model.layers import Attention
from languagepipes_node.model.step import Step


def prepare(
    step: Step, slots: torch.Tensor, window: int | None, sizes: Sizes, scale: float, cache: KvCache
) -> Callable[[int], Attention]:
    """What the layers with one window share in a step; the result is called with a layer's index in the cache."""
    from torch.nn.attention.varlen import varlen_attn  # needs a CUDA build

    device = slots.device
    counts = np.array([sequence.count for sequence in step.sequences], dtype=np.int32)
    lengths = np.array([sequence.length for sequence in step.sequences], dtype=np.int32)
    most = max(len(sequence.blocks) for sequence in step.sequences)
    table = np.zeros((len(counts), most), dtype=np.int32)
    for row, sequence in enumerate(step.sequences):
        table[row, : len(sequence.blocks)] = sequence.blocks
    starts = torch.from_numpy(np.concatenate(([0], np.cumsum(counts))).astype(np.int32)).to(device)
    ends = torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)).to(device)
    used = torch.from_numpy(lengths).to(device)
    blocks = torch.from_numpy(table).to(device)
    left = -1 if window is None else window - 1

    def of_layer(index: int) -> Attention:
        def attend(queries: torch.Tensor, keys_values: torch.Tensor) -> torch.Tensor:
            cache.write(index, slots, keys_values)
            keys, values = cache.layers[index]  # each [block, offset, kv head, head_dim]
            out = varlen_attn(
                queries.contiguous(),
                keys,
                values,
                starts,
                ends,
                int(counts.max()),
                int(lengths.max()),
                scale=scale,
                window_size=(left, 0),
                enable_gqa=sizes.group > 1,
                seqused_k=used,
                block_table=blocks,
                num_splits=1,
            )
            return cast("torch.Tensor", out).reshape(queries.shape[0], -1)

        return attend

    return of_layer
