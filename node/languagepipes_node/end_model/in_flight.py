"""Frames in flight: what each carries, when it is due, and whether what returned belongs to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from languagepipes_node.end_model.blocks import BlockLease
from languagepipes_node.end_model.interfaces import ReturnedPort
from languagepipes_node.end_model.prompt_scores import ScoringRows, wanted_rows
from languagepipes_node.end_model.scheduler import FrameView, Share, blocks_for
from languagepipes_node.end_model.sequences import Sequence
from languagepipes_node.end_model.verification import Draws
from languagepipes_node.model.batch import Batch


class RowsError(Exception):
    """What returned is not what was sent for: another step, or another number of bytes."""


@dataclass(frozen=True, eq=False)
class InFlightBatch:
    """A frame on the ring. leases: the blocks that it names, one lease a share.

    last_member: the last stage that computes. front_seconds: what the layers in front took. alone:
    nothing else was on the ring when it left. scoring: which of its rows score tokens of prompts. Times are of
    time.perf_counter()."""

    step: int
    shares: tuple[Share[Sequence], ...]
    leases: list[BlockLease]
    batch: Batch
    last_member: int
    view: FrameView
    front_seconds: float
    sent_at: float
    deadline: float
    alone: bool
    scoring: tuple[ScoringRows, ...] = ()

    @property
    def asking(self) -> list[Sequence]:
        """The sequences that want a token of it, in the order of the batch's rows."""
        return [share.sequence for share in self.shares if share.wants_row]

    @property
    def draws(self) -> list[Draws]:
        """The rows to sample from, one for each of `asking`."""
        found: list[Draws] = []
        row = 0
        for share, lease in zip(self.shares, self.leases, strict=True):
            if share.wants_row:
                found.append(Draws(share.sequence, lease, row, share.drafts))
            row += share.rows
        return found

    @property
    def overdue(self) -> str:
        """Why its epoch ends, if it has not returned by its deadline."""
        seconds = self.deadline - self.sent_at
        return f"step {self.step} with {self.batch.tokens} tokens did not return within {seconds:.1f} s"

    def check(self, returned: ReturnedPort, *, rows: int, row_bytes: int) -> None:
        """Raises RowsError unless `returned` is this step with `rows` rows of hidden state."""
        if returned.step != self.step:
            # Members are first in, first out: the oldest frame returns first or something is wrong.
            raise RowsError(f"step {returned.step} returned, step {self.step} was due")
        if len(returned.hidden) != rows * row_bytes:
            raise RowsError(
                f"step {self.step} returned with {len(returned.hidden)} bytes, {rows} rows have {rows * row_bytes}"
            )


def pack(shares: tuple[Share[Sequence], ...], leases: list[BlockLease], block_tokens: int) -> Batch:
    """The arrays of a frame: sequences in the order of `shares`, each with exactly the blocks it needs so
    far."""
    runs = [
        lease.prefix(blocks_for(share.start + share.count, block_tokens))
        for share, lease in zip(shares, leases, strict=True)
    ]
    counts = np.array([share.count for share in shares], np.int32)
    if any(share.drafts or share.sequence.prompt_logprobs is not None for share in shares):
        rows = wanted_rows(shares)
    else:
        wanted = np.array([share.wants_row for share in shares], np.bool_)
        rows = (np.cumsum(counts, dtype=np.int32) - 1)[wanted]
    return Batch(
        counts=counts,
        starts=np.array([share.start for share in shares], np.int32),
        run_counts=np.array([len(covering) for covering in runs], np.int32),
        runs=np.array([run for covering in runs for run in covering], np.int32).reshape(-1, 2),
        rows=rows,
    )


def packed_tokens(shares: tuple[Share[Sequence], ...]) -> npt.NDArray[np.int64]:
    """The token ids of a frame, int64 [tokens], for the embedding."""
    return np.array(
        [
            token
            for share in shares
            for token in (*share.sequence.tokens[share.start : share.known_stop], *share.drafts)
        ],
        np.int64,
    )
