"""Which sequences run, which wait, and which blocks they hold: the state that the scheduler decides on.

Sequences are in order of arrival in both lists, whatever happened to them. Blocks of a sequence that left are
returned when the last frame that names them has returned."""

from __future__ import annotations

from bisect import insort

from languagepipes_node.end_model.blocks import BlockAllocator, BlockLease
from languagepipes_node.end_model.scheduler import Share, blocks_for
from languagepipes_node.end_model.sequences import Sequence


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival


class SequenceTable:
    """All sequences that have not ended. running: those that hold blocks. waiting: those that do not (any
    more)."""

    def __init__(self, *, blocks: int, block_tokens: int) -> None:
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.blocks = BlockAllocator(blocks)
        # Blocks held by frames in flight alone.
        self.returning_blocks = 0
        self._block_tokens = block_tokens
        self._by_request: dict[int, Sequence] = {}

    def __len__(self) -> int:
        return len(self._by_request)

    def find(self, request_id: int) -> Sequence | None:
        return self._by_request.get(request_id)

    def everyone(self) -> list[Sequence]:
        return list(self._by_request.values())

    def add(self, sequence: Sequence) -> None:
        """A new sequence; it waits."""
        self._by_request[sequence.request_id] = sequence
        insort(self.waiting, sequence, key=_arrival)

    def start(self, sequence: Sequence) -> None:
        """Blocks for all tokens known, next to each other if possible, with room for those to come."""
        self.waiting.remove(sequence)
        sequence.lease = self.blocks.lease(
            blocks_for(sequence.length, self._block_tokens),
            expected=blocks_for(sequence.token_limit, self._block_tokens),
        )
        insort(self.running, sequence, key=_arrival)

    def preempt(self, sequence: Sequence) -> None:
        """Give its blocks back; it keeps its turn, and is computed again once there is room."""
        self.running.remove(sequence)
        self._give_back(sequence)
        sequence.forget()
        insort(self.waiting, sequence, key=_arrival)

    def end(self, sequence: Sequence) -> None:
        """It will be in no further frame. Nothing happens if it ended before."""
        if sequence.ended:
            return
        sequence.ended = True
        del self._by_request[sequence.request_id]
        if sequence.lease is None:
            self.waiting.remove(sequence)
        else:
            self.running.remove(sequence)
            self._give_back(sequence)

    def lease_for(self, share: Share[Sequence]) -> BlockLease:
        """The sequence's blocks, grown to hold this share."""
        lease = share.sequence.lease
        if lease is None:
            raise RuntimeError(f"request {share.sequence.request_id} runs without KV blocks")
        missing = blocks_for(share.start + share.count, self._block_tokens) - lease.blocks
        if missing > 0:
            self.blocks.grow(lease, missing)
        return lease

    def sent(self, shares: tuple[Share[Sequence], ...], leases: list[BlockLease], *, step: int) -> None:
        """A frame of these shares is in flight, and names these blocks."""
        for share, lease in zip(shares, leases, strict=True):
            self.blocks.hold(lease)
            share.sequence.sent = share.start + share.count
            share.sequence.in_flight += 1
            share.sequence.last_step = step

    def returned(self, shares: tuple[Share[Sequence], ...], leases: list[BlockLease], *, last_member: int) -> None:
        """That frame, which stages up to `last_member` computed, has returned."""
        for share, lease in zip(shares, leases, strict=True):
            if share.sequence.lease is lease:
                share.sequence.returned(share.start + share.count, last_member)
            self._let_go(share, lease)

    def lost(self, shares: tuple[Share[Sequence], ...], leases: list[BlockLease]) -> None:
        """That frame will not return: its epoch is over."""
        for share, lease in zip(shares, leases, strict=True):
            self._let_go(share, lease)

    def _let_go(self, share: Share[Sequence], lease: BlockLease) -> None:
        share.sequence.in_flight -= 1
        if share.sequence.lease is not lease and lease.holders == 1:
            self.returning_blocks -= lease.blocks
        self.blocks.release(lease)

    def _give_back(self, sequence: Sequence) -> None:
        lease, sequence.lease = sequence.lease, None
        if lease is None:
            return
        if lease.holders > 1:
            self.returning_blocks += lease.blocks
        self.blocks.release(lease)
