"""KV blocks that a failed sequence left full of NaN give their next user the numbers that fresh blocks give.

What is masked is multiplied by a weight of zero, and zero times NaN is NaN: a slot that was not written must be finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from languagepipes_api.plan import LayerRange
from languagepipes_node.model import whole_step
from languagepipes_node.model.batch import Batch
from languagepipes_node.model.linear import WHOLE, Arithmetic, Compute, always
from languagepipes_node.model.stack import LayerStack
from support.models import LAYERS, ParityModel
from support.replica import CPU

BLOCK_TOKENS, BLOCKS = 4, 24
FAMILIES = [
    "llama",
    "qwen3",
    "qwen3 sliding from layer 3",
    "mistral sliding",
    "qwen3_moe with dense layers",
    "olmo2 by transformers' layers",
    "gemma3 by transformers' layers",
]
TOGETHER = tuple(tuple(range(first, first + 6)) for first in (0, 6, 12, 18))
SCATTERED = ((20, 3, 11, 0, 9, 14), (5, 23, 1, 17, 8, 2), (16, 4, 22, 13, 7, 19), (6, 21, 10, 15, 18, 12))
# Tokens of four prompts: within a block, at its end, at the start of the next one, over several.
PROMPTS = (3, BLOCK_TOKENS, BLOCK_TOKENS + 1, 3 * BLOCK_TOKENS - 2)
DECODE_STEPS = 2 * BLOCK_TOKENS + 1


def ways(model: ParityModel, dtype: torch.dtype) -> dict[str, Compute]:
    """Steps by torch, whole native steps, and what a member does: whole steps for few rows, torch for the others."""
    torch_alone = always(Arithmetic(dtype))
    if not model.architecture.native or not whole_step.serves(model.architecture, CPU):
        return {"torch": torch_alone}
    return {"torch": torch_alone, "whole": always(WHOLE), "whole below 4 rows": torch_alone.whole_below(4)}


def batch(*shares: tuple[Sequence[int], int, int]) -> Batch:
    """shares: (the sequence's blocks, start, count)."""
    counts, starts, runs, run_counts = [], [], [], []
    for blocks, start, count in shares:
        held = -(-(start + count) // BLOCK_TOKENS)
        counts.append(count)
        starts.append(start)
        runs.extend((block, 1) for block in blocks[:held])
        run_counts.append(held)
    columns = [np.array(column, dtype=np.int32) for column in (counts, starts, run_counts, runs)]
    return Batch(*columns, rows=np.arange(sum(counts), dtype=np.int32))


class Member:
    """All layers of a model, and sequences whose hidden states are random."""

    def __init__(self, model: ParityModel, dtype: torch.dtype, compute: Compute, device: torch.device = CPU) -> None:
        self.layers = LayerStack(
            model.architecture,
            LayerRange(0, LAYERS),
            dtype=dtype,
            device=device,
            block_tokens=BLOCK_TOKENS,
            blocks=BLOCKS,
            compute=compute,
        )
        self.layers.load(model.source, lambda done: None)
        self.hidden_size = model.architecture.hidden_size

    def hidden(self, tokens: int, seed: int) -> torch.Tensor:
        drawn = torch.randn(tokens, self.hidden_size, generator=torch.Generator().manual_seed(seed))
        return drawn.to(self.layers.dtype).to(self.layers.device)

    def run(self, step: Batch, seed: int) -> torch.Tensor:
        return self.layers.run(self.hidden(step.tokens, seed), step).clone()

    def fail_in_every_slot(self) -> None:
        """A sequence whose hidden states are NaN fills all blocks, and is gone."""
        step = batch((range(BLOCKS), 0, BLOCKS * BLOCK_TOKENS))
        self.layers.run(torch.full_like(self.hidden(step.tokens, 0), float("nan")), step)

    def serve(self, blocks: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Prompts in one step and in chunks, then all sequences decode together over several blocks' ends."""
        results = [
            self.run(batch((blocks[0], 0, PROMPTS[0]), (blocks[1], 0, PROMPTS[1])), 1),
            # A chunk that ends within a block, and one that continues there, beside rows that decode.
            self.run(batch((blocks[2], 0, PROMPTS[2] - 3), (blocks[0], PROMPTS[0], 1)), 2),
            self.run(batch((blocks[2], PROMPTS[2] - 3, 3), (blocks[3], 0, PROMPTS[3])), 3),
        ]
        lengths = [PROMPTS[0] + 1, *PROMPTS[1:]]
        for step in range(DECODE_STEPS):
            results.append(self.run(batch(*((own, at, 1) for own, at in zip(blocks, lengths, strict=True))), 10 + step))
            lengths = [length + 1 for length in lengths]
        return results


@pytest.mark.parametrize("blocks", [TOGETHER, SCATTERED], ids=["together", "scattered"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_full_of_nan_give_what_fresh_blocks_give(
    name: str, dtype: torch.dtype, blocks: Sequence[Sequence[int]], model_named: Callable[[str], ParityModel]
) -> None:
    model = model_named(name)
    for way, compute in ways(model, dtype).items():
        fresh, handed_on = Member(model, dtype, compute), Member(model, dtype, compute)
        handed_on.fail_in_every_slot()
        for number, (expected, seen) in enumerate(zip(fresh.serve(blocks), handed_on.serve(blocks), strict=True)):
            assert torch.isfinite(expected).all()
            assert torch.equal(seen, expected), f"{way}, step {number}"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_on_a_gpu_blocks_full_of_nan_give_what_fresh_blocks_give(
    name: str, dtype: torch.dtype, model_named: Callable[[str], ParityModel]
) -> None:
    model, compute = model_named(name), always(Arithmetic(dtype))
    fresh, handed_on = (Member(model, dtype, compute, torch.device("cuda")) for _ in range(2))
    handed_on.fail_in_every_slot()
    for expected, seen in zip(fresh.serve(SCATTERED), handed_on.serve(SCATTERED), strict=True):
        torch.testing.assert_close(seen, expected)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3 by transformers' layers"])
def test_steps_run_again_in_order_leave_the_cache_that_they_left(
    name: str, model_named: Callable[[str], ParityModel]
) -> None:
    """What follows a lost epoch: the steps in flight once more, from one that enters a block or from its middle."""
    model = model_named(name)
    own, other = SCATTERED[0], SCATTERED[1]
    steps = [batch((own, 0, 3), (other, 0, 5)), batch((own, 3, 3), (other, 5, 1)), batch((own, 6, 1), (other, 6, 3))]
    last = batch((own, 7, 1), (other, 9, 1))
    for compute in ways(model, torch.float32).values():
        once = Member(model, torch.float32, compute)
        for seed, step in enumerate(steps):
            once.run(step, seed)
        expected = once.run(last, 9)
        for first in range(len(steps)):
            again = Member(model, torch.float32, compute)
            for seed, step in [*enumerate(steps), *list(enumerate(steps))[first:]]:
                again.run(step, seed)
            assert torch.equal(again.run(last, 9), expected), f"from step {first}"
