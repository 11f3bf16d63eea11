"""Which sequences run, which wait, and which blocks they hold: the state that the scheduler decides on.

Sequences are in order of arrival in both lists, whatever happened to them. Blocks of a sequence that left are
returned when the last frame that names them has returned.

A full block becomes known when the frame that filled it has returned, so that its KV is valid at every member; a
sequence that starts takes the known blocks that its tokens begin with, and computes the rest."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from itertools import islice

from languagepipes_node.end_model.blocks import BlockAllocator, BlockLease
from languagepipes_node.end_model.prefix_keys import PrefixKeys
from languagepipes_node.end_model.scheduler import Share, blocks_for
from languagepipes_node.end_model.sequences import Sequence


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival


class SequenceTable:
    """All sequences that have not ended. running: those that hold blocks. waiting: those that do not (any
    more). prefix_cache: whether blocks become known, and are shared."""

    def __init__(self, *, blocks: int, block_tokens: int, prefix_cache: bool = True) -> None:
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.blocks = BlockAllocator(blocks)
        # Blocks held by frames in flight alone.
        self.returning_blocks = 0
        self._block_tokens = block_tokens
        self._by_request: dict[int, Sequence] = {}
        self._keys = PrefixKeys(block_tokens) if prefix_cache else None
        # Running sequences that will compute the block of a key.
        self._computing: dict[bytes, Sequence] = {}

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

    def look_up(self) -> None:
        """Before a decision: what each waiting sequence would find if it started now."""
        if self._keys is None:
            return
        version = self.blocks.cached.version
        for sequence in self.waiting:
            if sequence.looked_up != version:
                self._look_up(sequence, self._keys)

    def _look_up(self, sequence: Sequence, keys: PrefixKeys) -> list[int]:
        """The known blocks that it begins with."""
        cached, size = self.blocks.cached, self._block_tokens
        most, full = sequence.reusable_tokens // size, sequence.length // size
        keys.extend(sequence.block_keys, sequence.tokens, blocks=full, domain=sequence.domain)
        found = cached.find(sequence.block_keys[:most])
        sequence.begin_at(len(found) * size)
        sequence.shared_blocks = cached.in_use(found)
        # A block that it has to compute itself in any case is nothing to wait for.
        sequence.computes = sequence.block_keys[len(found)] if len(found) < most else None
        sequence.follows = len(found) < most and self._is_computed(sequence, len(found))
        sequence.looked_up = cached.version
        return found

    def _is_computed(self, sequence: Sequence, index: int) -> bool:
        """Whether its block `index` is on its way, for a sequence that it may wait for: one of the same client, so that
        turns stay as they are, and that came earlier, so that nobody waits in a circle."""
        leader = self._computing.get(sequence.block_keys[index])
        return (
            leader is not None
            and leader.lease is not None
            and leader.known_blocks <= index
            and leader.client == sequence.client
            and leader.arrival < sequence.arrival
        )

    def start(self, sequences: Iterable[Sequence]) -> None:
        """Blocks for all tokens known, next to each other if possible, with room for those to come; the known ones
        among them are shared. All take these first, so that none is evicted for another's sake."""
        starting = list(sequences)
        for sequence in starting:
            self.waiting.remove(sequence)
            found = [] if self._keys is None else self._look_up(sequence, self._keys)
            sequence.lease = self.blocks.lease(
                0, expected=blocks_for(sequence.token_limit, self._block_tokens), shared=found
            )
            sequence.known_blocks = len(found)
            if sequence.cached_tokens is None:
                sequence.cached_tokens = sequence.sent
            insort(self.running, sequence, key=_arrival)
        for sequence in starting:
            if sequence.lease is not None:
                missing = blocks_for(sequence.length, self._block_tokens) - sequence.lease.blocks
                self.blocks.grow(sequence.lease, missing)
            for key in sequence.block_keys[sequence.known_blocks :]:
                self._computing.setdefault(key, sequence)
        if starting:
            self.blocks.cached.version += 1

    def preempt(self, sequence: Sequence) -> None:
        """Give its blocks back; it keeps its turn, and is computed again once there is room."""
        self.running.remove(sequence)
        self._give_back(sequence)
        sequence.forget()
        insort(self.waiting, sequence, key=_arrival)

    def lose_kv(self, stage: int) -> list[int]:
        """Stage `stage`, from 1, and perhaps others before it, lost their KV: nothing is known any more, and whoever
        runs computes from the start. Nothing is in flight. Returns, for each that had any, how many were computed.

        A block that is written again is not valid meanwhile (a member clears what a step does not write of it), so of
        those that share blocks one keeps them, and the others are put back: they find them once they are valid. Who
        is tried apart keeps its blocks, since one that waits is not."""
        self.blocks.forget_all()
        kept: set[int] = set()
        lost = []
        for sequence in sorted(self.running, key=lambda sequence: (not sequence.suspect, sequence.arrival)):
            computed = sequence.kv[-1]
            blocks = () if sequence.lease is None else sequence.lease.ids
            if kept.isdisjoint(blocks):
                kept.update(blocks)
                sequence.lose_kv(stage)
            else:
                self.preempt(sequence)
            if computed:
                lost.append(computed)
        return lost

    def distrust(self, sequence: Sequence) -> None:
        """What its blocks hold may be wrong: nobody else is to begin with them."""
        if sequence.lease is not None:
            self.blocks.forget(sequence.lease)

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
            share.sequence.sent = share.known_stop
            share.sequence.in_flight += 1
            share.sequence.last_step = step

    def returned(self, shares: tuple[Share[Sequence], ...], leases: list[BlockLease], *, last_member: int) -> None:
        """That frame, which stages up to `last_member` computed, has returned."""
        for share, lease in zip(shares, leases, strict=True):
            if share.sequence.lease is lease:
                share.sequence.returned(share.known_stop, last_member)
                self._make_full_blocks_known(share.sequence, lease)
            self._let_go(share, lease)

    def verified(self, sequence: Sequence, lease: BlockLease) -> None:
        """The next token that this sequence's last frame drafted was sampled: its KV is in these blocks, if they are
        still the sequence's."""
        if sequence.lease is lease:
            sequence.verified()
            self._make_full_blocks_known(sequence, lease)

    def lost(self, shares: tuple[Share[Sequence], ...], leases: list[BlockLease]) -> None:
        """That frame will not return: its epoch is over."""
        for share, lease in zip(shares, leases, strict=True):
            self._let_go(share, lease)

    def _make_full_blocks_known(self, sequence: Sequence, lease: BlockLease) -> None:
        """All members may hold the KV of some more full blocks."""
        first, full = sequence.known_blocks, sequence.kv[0] // self._block_tokens
        if full <= first:
            return
        sequence.known_blocks = full
        if self._keys is None:
            return
        self._keys.extend(sequence.block_keys, sequence.tokens, blocks=full, domain=sequence.domain)
        for block, key in zip(islice(lease.ids, first, full), sequence.block_keys[first:full], strict=True):
            self.blocks.cached.add(block, key)
            self._stop_computing(sequence, key)

    def _stop_computing(self, sequence: Sequence, key: bytes) -> None:
        if self._computing.get(key) is sequence:
            del self._computing[key]

    def _let_go(self, share: Share[Sequence], lease: BlockLease) -> None:
        share.sequence.in_flight -= 1
        if share.sequence.lease is not lease and lease.holders == 1:
            self.returning_blocks -= lease.returning
        self.blocks.release(lease)

    def _give_back(self, sequence: Sequence) -> None:
        lease, sequence.lease = sequence.lease, None
        if lease is None:
            return
        for key in sequence.block_keys[sequence.known_blocks :]:
            self._stop_computing(sequence, key)
        self.blocks.cached.version += 1  # who waited for its blocks computes them
        if lease.holders > 1:
            lease.returning = lease.sole_blocks
            self.returning_blocks += lease.returning
        self.blocks.release(lease)
