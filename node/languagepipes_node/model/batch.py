"""One packed micro-batch: what a frame's arrays say and what a member's layers need. numpy only, no torch.

Tokens of all sequences lie one after another: sequence s has `counts[s]` tokens, the first at position `starts[s]`
(so `starts[s]` tokens of it are in the KV cache already). Its KV lies in blocks, told as runs of consecutive block
ids: the sequence's token at position p is in its (p // block_tokens)-th block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """counts, starts: int32 [S]. run_counts: int32 [S], runs a sequence. runs: int32 [sum(run_counts), 2], each (first
    block id, number of blocks); together a sequence's runs cover exactly ceil((start + count) / block_tokens) blocks.
    rows: int32 [R], ascending indices into the packed tokens whose final hidden states the End Model wants back
    (sampled rows; prefill chunks that end no prompt want none).
    """

    counts: Int32
    starts: Int32
    run_counts: Int32
    runs: Int32
    rows: Int32

    @property
    def sequences(self) -> int:
        return int(self.counts.shape[0])

    @property
    def tokens(self) -> int:
        return int(self.counts.sum())
