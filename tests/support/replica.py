"""A replica in one process without a wire: every member's layers, called one after the other.

How it computes is given, not measured: measuring costs a replica of this size more than its steps do, and what comes of
it depends on how busy the machine is.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from languagepipes_api.plan import LayerRange
from languagepipes_node.model import kernels
from languagepipes_node.model.batch import Batch
from languagepipes_node.model.end import EndLayers
from languagepipes_node.model.linear import WHOLE, Arithmetic, Compute
from languagepipes_node.model.matrix import panels_pay
from languagepipes_node.model.stack import LayerStack
from languagepipes_node.weights.source import TensorSource

from support.models import LAYERS, ParityModel

BLOCK_TOKENS = 16
BLOCKS = 96
CPU = torch.device("cpu")
SPLITS = {
    2: (0, 1, 6),
    3: (0, 2, 3, 6),
    5: (0, 1, 2, 3, 4, 6),
}


MEASURED = None  # as a member: each measures what is fastest here


def _each_way() -> Compute:
    """What measurements of a member that is faster by each way would choose: whole native steps for one and a few rows,
    the native kernel for some more, torch in float32 for the others."""
    torch_alone = Arithmetic(torch.float32)
    if not kernels.available():
        return Compute(((1, torch_alone),))
    return Compute(((1, WHOLE), (4, Arithmetic(torch.float32, native=True)), (16, torch_alone)))


EACH_WAY = _each_way()


@dataclass
class Running:
    """One sequence and the blocks it holds, in order."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0

    def runs(self) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        for block in self.blocks:
            if runs and sum(runs[-1]) == block:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((block, 1))
        return runs


def _column(values: Sequence[int]) -> Any:
    return np.array(values, dtype=np.int32)


class Replica:
    """Every member of a ring in one process: the End Model's layers first (and last), stages in between.

    splits: the members' borders; the first range is the End Model's. tail: layers of the last range are its too.
    compute: MEASURED (None), or how native families compute; where bfloat16 is kept as panels, EACH_WAY is what panels
    have, which is not measured either.
    """

    def __init__(
        self,
        model: ParityModel,
        splits: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        tail: bool = False,
        compute: Compute | None = EACH_WAY,
        source: TensorSource | None = None,
        device: torch.device = CPU,
        block_tokens: int = BLOCK_TOKENS,
        scattered: bool = False,
    ) -> None:
        if compute is EACH_WAY and (panels_pay(dtype, device) or device.type != "cpu"):
            compute = MEASURED
        self.model = model
        self.dtype = dtype
        self.block_tokens = block_tokens
        ranges = [LayerRange(start, stop) for start, stop in itertools.pairwise(splits)]
        sizes: dict[str, Any] = {
            "dtype": dtype,
            "device": device,
            "block_tokens": block_tokens,
            "blocks": BLOCKS,
            "compute": compute,
        }
        last = ranges.pop() if tail else LayerRange(LAYERS, LAYERS)
        self.end = EndLayers(model.architecture, ranges[0], last, **sizes)
        self.stages = [LayerStack(model.architecture, layers, **sizes) for layers in ranges[1:]]
        for member in (self.end, *self.stages):
            member.load(source or model.source, lambda done: None)
        self.free = list(range(BLOCKS))
        if scattered:
            random.Random(5).shuffle(self.free)

    def step(self, work: Sequence[tuple[Running, Sequence[int], Sequence[int]]]) -> torch.Tensor:
        """work: (sequence, its new tokens, which of them to answer). Returns float32 logits of those, in order."""
        counts, starts, runs, run_counts, rows, tokens = [], [], [], [], [], []
        for sequence, new, wanted in work:
            rows.extend(len(tokens) + row for row in wanted)
            tokens.extend(new)
            counts.append(len(new))
            starts.append(sequence.length)
            sequence.length += len(new)
            while len(sequence.blocks) * self.block_tokens < sequence.length:
                sequence.blocks.append(self.free.pop(0))
            runs.extend(sequence.runs())
            run_counts.append(len(sequence.runs()))
        batch = Batch(_column(counts), _column(starts), _column(run_counts), _column(runs), _column(rows))  # type: ignore[arg-type]
        return self.run(tokens, batch)

    def run(self, tokens: Sequence[int], batch: Batch) -> torch.Tensor:
        hidden = self.end.front(torch.tensor(list(tokens)), batch)
        for stage in self.stages:
            assert hidden.dtype == self.dtype
            hidden = stage.run(hidden, batch)
        if not self.end.has_tail:
            hidden = hidden[torch.from_numpy(batch.rows).to(hidden.device)]
        return self.end.logits(self.end.back(hidden, batch)).cpu()

    def end_sequence(self, sequence: Running) -> None:
        self.free.extend(sequence.blocks)
        sequence.blocks, sequence.length = [], 0

    def logits(self, tokens: Sequence[int], chunk: int = 1000) -> torch.Tensor:
        """float32 [tokens, vocabulary] of one sequence, prefilled `chunk` tokens at a time."""
        return self.logits_in(tokens, [chunk] * -(-len(tokens) // chunk))

    def logits_in(self, tokens: Sequence[int], chunks: Sequence[int]) -> torch.Tensor:
        """The same in chunks of these sizes, which come to all tokens or more."""
        sequence, parts, begin = Running(), [], 0
        for chunk in chunks:
            piece = tokens[begin : begin + chunk]
            parts.append(self.step([(sequence, piece, range(len(piece)))]))
            begin += chunk
        self.end_sequence(sequence)
        return torch.cat(parts)

    def generate(self, prompt: Sequence[int], tokens: int, chunk: int = 1000) -> list[int]:
        """Greedy, one sequence."""
        sequence = Running()
        for begin in range(0, len(prompt), chunk):
            piece = list(prompt[begin : begin + chunk])
            last = self.step([(sequence, piece, [len(piece) - 1])])
        out = [int(last.argmax())]
        while len(out) < tokens:
            out.append(int(self.step([(sequence, out[-1:], [0])]).argmax()))
        self.end_sequence(sequence)
        return out
