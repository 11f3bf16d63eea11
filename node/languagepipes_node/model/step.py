"""What every layer of a member needs of one batch, worked out once a step: positions, slots and where each KV lies.

A *slot* is one token's place in a layer's cache: block × block_tokens + offset. Pure: numpy in, plain values out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from languagepipes_node.model.batch import Batch
from languagepipes_node.model.errors import BatchError

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """The cached tokens `[first, stop)` of one sequence, as its queries may see them.

    slot: where the first of them lies if all lie one after another; None if they are scattered.
    """

    first: int
    stop: int
    slot: int | None

    def __len__(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True)
class Sequence:
    """Packed tokens `[token, token + count)` of a batch, at positions from `start`, and the blocks in order."""

    token: int
    count: int
    start: int
    blocks: Int64

    @property
    def length(self) -> int:
        """Tokens in the cache once this step's are written."""
        return self.start + self.count

    def span(self, window: int | None, block_tokens: int) -> Span:
        """What this step's queries can see at all; `window` as in Architecture.sliding_windows."""
        first = 0 if window is None else max(0, self.start + 1 - window)
        blocks = self.blocks[first // block_tokens : -(-self.length // block_tokens)]
        together = len(blocks) == 1 or int(blocks[-1]) - int(blocks[0]) == len(blocks) - 1
        if together and len(blocks) > 2:
            together = bool((np.diff(blocks) == 1).all())
        slot = int(blocks[0]) * block_tokens + first % block_tokens if together else None
        return Span(first, self.length, slot)

    def slots(self, first: int, stop: int, block_tokens: int) -> Int64:
        """Slots of the sequence's positions `[first, stop)`."""
        positions = np.arange(first, stop, dtype=np.int64)
        return self.blocks[positions // block_tokens] * block_tokens + positions % block_tokens


@dataclass(frozen=True)
class Step:
    """A checked batch. positions, slots: int64 [tokens], of the packed tokens.

    unwritten: ranges of slots `[first, stop)` behind this step's tokens, in the blocks that a sequence enters with it
    (it writes their first slot): what is there was left by another sequence, and whoever decodes with others reads it.
    Later steps write those slots, so that a step run again before them takes nothing away.
    """

    sequences: tuple[Sequence, ...]
    positions: Int64
    slots: Int64
    block_tokens: int
    unwritten: tuple[tuple[int, int], ...]

    @property
    def tokens(self) -> int:
        return int(self.positions.shape[0])


def read(batch: Batch, *, blocks: int, block_tokens: int) -> Step:
    """Check a batch against a cache of `blocks` × `block_tokens` and lay it out. Raises BatchError."""
    counts, starts, run_counts, runs = batch.counts, batch.starts, batch.run_counts, batch.runs
    if len(counts) != len(starts) or len(counts) != len(run_counts):
        raise BatchError(f"batch: {len(counts)} counts, {len(starts)} starts and {len(run_counts)} run counts")
    if len(counts) == 0:
        raise BatchError("batch: it names no sequence")
    if int(counts.min()) < 1 or int(starts.min()) < 0 or int(run_counts.min()) < 1:
        raise BatchError("batch: a sequence needs a token, a start of at least 0 and a run of blocks")
    if runs.ndim != 2 or runs.shape[1] != 2 or len(runs) != int(run_counts.sum()):
        raise BatchError(f"batch: {int(run_counts.sum())} runs announced, {len(runs)} given")
    first, number = runs[:, 0].astype(np.int64), runs[:, 1].astype(np.int64)
    if int(first.min()) < 0 or int(number.min()) < 1 or int((first + number).max()) > blocks:
        raise BatchError(f"batch: a run of blocks lies outside the {blocks} blocks of this member")

    ends = starts.astype(np.int64) + counts
    needed = -(-ends // block_tokens)
    run_starts = np.cumsum(run_counts) - run_counts
    given = np.add.reduceat(number, run_starts)
    if not np.array_equal(needed, given):
        wrong = int(np.flatnonzero(needed != given)[0])
        raise BatchError(
            f"batch: sequence {wrong} holds {int(ends[wrong])} tokens, which take {int(needed[wrong])} blocks of"
            f" {block_tokens}, but its runs give {int(given[wrong])}"
        )
    # Block ids of all sequences, run after run.
    offsets = np.cumsum(number) - number
    block_ids = np.repeat(first - offsets, number) + np.arange(int(number.sum()), dtype=np.int64)
    block_starts = np.cumsum(given) - given
    token_starts = np.cumsum(counts, dtype=np.int64) - counts
    owner = np.repeat(np.arange(len(counts)), counts)
    tokens = int(counts.sum())
    positions: Int64 = np.arange(tokens, dtype=np.int64) + (starts - token_starts)[owner]
    slots = block_ids[block_starts[owner] + positions // block_tokens] * block_tokens + positions % block_tokens
    sequences = tuple(
        Sequence(token, count, start, block_ids[block : block + held])
        for token, count, start, block, held in zip(
            token_starts.tolist(),
            counts.tolist(),
            starts.tolist(),
            block_starts.tolist(),
            given.tolist(),
            strict=True,
        )
    )
    # Of the blocks that a step enters, all but a sequence's last are full.
    inside = ends % block_tokens
    entering = np.flatnonzero((inside > 0) & (counts >= inside))
    behind = slots[(token_starts + counts - 1)[entering]] + 1
    unwritten = tuple(zip(behind.tolist(), (behind + block_tokens - inside[entering]).tolist(), strict=True))
    return Step(sequences, positions, slots.astype(np.int64, copy=False), block_tokens, unwritten)


def probe(rows: int, blocks: int, block_tokens: int) -> Step | None:
    """A decode step of `rows` sequences at their first token, for measurements; None if there are too few blocks."""
    if rows > blocks:
        return None
    ones = np.ones(rows, np.int32)
    runs = np.stack((np.arange(rows, dtype=np.int32), ones), axis=1)
    batch = Batch(ones, np.zeros(rows, np.int32), ones, runs, np.arange(rows, dtype=np.int32))
    return read(batch, blocks=blocks, block_tokens=block_tokens)
