"""KV blocks of the ring's one block-id space: which lease holds which, and when a block is free again.

A sequence's session holds a `BlockLease`; each frame in flight that names its blocks holds the lease too.
The blocks are free again when the last holder releases them, so no block that a frame still addresses is
written by another sequence. The allocator knows ids only; what a block contains, and where, each member decides.

Consecutive ids are preferred, since a run is one view of a member's cache: a lease grows in place where it
can, and a new lease starts where both it and its neighbour have room to grow. Leases share blocks that are known
(`cached_blocks.py`), which are full and never written again, so copy-on-write does not exist."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from languagepipes_node.end_model.cached_blocks import CachedBlocks


class BlockError(RuntimeError):
    """A fault inside the engine (too few blocks, released twice), never a client's."""


@dataclass(eq=False)
class BlockLease:
    """Blocks of one session of a sequence, in order: `runs` are half-open `[first, stop)` id ranges.

    expected: blocks that the lease may grow to; a hint for placing neighbours, not a reservation.
    holders: the sequence (if it still holds it) plus the frames in flight that name these blocks.
    returning: how many of them will be free once the frames in flight have returned; 0 while the sequence holds it.
    """

    expected: int
    cached: CachedBlocks
    runs: list[list[int]] = field(default_factory=list)
    blocks: int = 0
    holders: int = 1
    returning: int = 0

    @property
    def ids(self) -> list[int]:
        """Its blocks, in order."""
        return [block for start, stop in self.runs for block in range(start, stop)]

    @property
    def sole_blocks(self) -> int:
        """How many of its blocks no other lease holds."""
        return sum(1 for block in self.ids if self.cached.users(block) < 2)

    @property
    def room_wanted(self) -> int:
        """How many more blocks it may ask for."""
        return max(0, self.expected - self.blocks)

    def prefix(self, blocks: int) -> list[tuple[int, int]]:
        """The first `blocks` blocks as (first id, number of blocks), the form that a frame carries."""
        if blocks > self.blocks:
            raise BlockError(f"a frame names {blocks} blocks, the lease holds {self.blocks}")
        covering: list[tuple[int, int]] = []
        for first, stop in self.runs:
            if blocks <= 0:
                break
            taken = min(blocks, stop - first)
            covering.append((first, taken))
            blocks -= taken
        return covering


class BlockAllocator:
    """Hands out the ids `[0, total)`. Not thread-safe: the engine's thread alone uses it."""

    def __init__(self, total: int) -> None:
        if total < 1:
            raise BlockError(f"kv_blocks={total}: a ring needs at least one KV block")
        self.total = total
        self.cached = CachedBlocks()
        # Free ranges [start, stop), sorted, disjoint and never adjacent.
        self._starts: list[int] = [0]
        self._stops: list[int] = [total]
        self._free = total
        # Where the last run of a live lease ends: whoever is placed there leaves that lease room to grow.
        self._growing: dict[int, BlockLease] = {}

    @property
    def free(self) -> int:
        """Blocks that can be handed out now: those that hold nothing, and those that are known and idle."""
        return self._free + self.cached.idle

    @property
    def used(self) -> int:
        """Blocks held by a sequence or a frame in flight."""
        return self.total - self.free

    def free_ranges(self) -> Iterator[tuple[int, int]]:
        """Half-open ranges of blocks that hold nothing, ascending; for tests and for people."""
        return iter(list(zip(self._starts, self._stops, strict=True)))

    def lease(self, blocks: int, *, expected: int, shared: Sequence[int] = ()) -> BlockLease:
        """A new lease on known blocks and `blocks` others, held once. Raises BlockError if fewer are free: see
        `free`."""
        lease = BlockLease(expected=max(len(shared) + blocks, expected), cached=self.cached)
        for block in shared:
            self.cached.take(block)
            _add_run(lease, block, block + 1)
        self.grow(lease, blocks)
        return lease

    def grow(self, lease: BlockLease, blocks: int) -> None:
        """Add `blocks` blocks to a lease. Raises BlockError, and changes nothing, if fewer are free.

        Known blocks are evicted where those that hold nothing are too few: the one next to the lease's last if it is
        among the stale ones, else the longest idle."""
        if blocks > self.free:
            raise BlockError(f"{blocks} KV blocks asked, {self.free} of {self.total} are free")
        blocks -= self._grow_in_place(lease, blocks)
        while blocks and lease.runs and self._free < blocks and self.cached.is_stale(lease.runs[-1][1]):
            block = self.cached.evict(lease.runs[-1][1])
            self._give(block, block + 1)
            blocks -= self._grow_in_place(lease, blocks)
        while self._free < blocks:
            block = self.cached.evict()
            self._give(block, block + 1)
        while blocks:
            index, start = self._place(blocks, hint=max(blocks, lease.room_wanted))
            stop = min(start + blocks, self._stops[index])
            self._take(index, start, stop)
            self._append(lease, start, stop)
            blocks -= stop - start

    def forget(self, lease: BlockLease) -> None:
        """Nobody finds this lease's blocks any more, and who holds them keeps them."""
        for block in lease.ids:
            self.cached.forget(block)

    def forget_all(self) -> None:
        """No block is known any more."""
        for block in self.cached.forget_all():
            self._give(block, block + 1)

    def hold(self, lease: BlockLease) -> None:
        """One more frame names these blocks."""
        if lease.holders < 1:
            raise BlockError("a frame names blocks that nobody holds")
        lease.holders += 1

    def release(self, lease: BlockLease) -> None:
        """The sequence, or a frame, releases it; after the last holder the blocks are free again."""
        if lease.holders < 1:
            raise BlockError("a lease was released more often than it was held")
        lease.holders -= 1
        if lease.holders:
            return
        self._stop_growing(lease)
        # The last block first: it becomes idle first, since nobody finds it without those before it.
        for start, stop in reversed(lease.runs):
            for block in range(stop - 1, start - 1, -1):
                if not self.cached.let_go(block):
                    if block + 1 < stop:
                        self._give(block + 1, stop)
                    stop = block
            if start < stop:
                self._give(start, stop)
        lease.runs = []
        lease.blocks = 0

    def _grow_in_place(self, lease: BlockLease, blocks: int) -> int:
        if not blocks or not lease.runs:
            return 0
        end = lease.runs[-1][1]
        index = bisect_left(self._starts, end)
        if index == len(self._starts) or self._starts[index] != end:
            return 0
        stop = min(end + blocks, self._stops[index])
        self._take(index, end, stop)
        self._append(lease, end, stop)
        return stop - end

    def _append(self, lease: BlockLease, start: int, stop: int) -> None:
        self._stop_growing(lease)
        _add_run(lease, start, stop)
        self._growing[stop] = lease

    def _stop_growing(self, lease: BlockLease) -> None:
        if lease.runs and self._growing.get(lease.runs[-1][1]) is lease:
            del self._growing[lease.runs[-1][1]]

    def _place(self, blocks: int, *, hint: int) -> tuple[int, int]:
        """(index of a free range, start in it): the tightest place with room for `hint`, else the roomiest.

        The lease that ends where the range starts keeps the room it may still want, or half the range if that
        is less."""
        best: tuple[int, int] | None = None
        best_key: tuple[int, int] | None = None
        for index, (start, stop) in enumerate(zip(self._starts, self._stops, strict=True)):
            length = stop - start
            neighbour = self._growing.get(start)
            margin = 0
            if neighbour is not None and length > blocks:
                margin = min(neighbour.room_wanted, max(length - hint, length // 2), length - blocks)
            room = length - margin
            # Fits the hint: the tightest wins. Does not: the roomiest wins, after all that fit.
            key = (0, room) if room >= hint else (1, -room)
            if best_key is None or key < best_key:
                best, best_key = (index, start + margin), key
        if best is None:
            raise BlockError("no free KV block")
        return best

    def _take(self, index: int, start: int, stop: int) -> None:
        """Cut `[start, stop)` out of free range `index`."""
        range_start, range_stop = self._starts[index], self._stops[index]
        pieces = [(a, b) for a, b in ((range_start, start), (stop, range_stop)) if a < b]
        self._starts[index : index + 1] = [a for a, _ in pieces]
        self._stops[index : index + 1] = [b for _, b in pieces]
        self._free -= stop - start

    def _give(self, start: int, stop: int) -> None:
        """Put `[start, stop)` back, joined with its free neighbours."""
        index = bisect_left(self._starts, start)
        if index < len(self._starts) and self._starts[index] < stop:
            raise BlockError(f"blocks [{start}, {stop}) are free already")
        self._free += stop - start
        if index > 0 and self._stops[index - 1] == start:
            start = self._starts[index - 1]
            index -= 1
            del self._starts[index], self._stops[index]
        if index < len(self._starts) and self._starts[index] == stop:
            stop = self._stops[index]
            del self._starts[index], self._stops[index]
        self._starts.insert(index, start)
        self._stops.insert(index, stop)


def _add_run(lease: BlockLease, start: int, stop: int) -> None:
    if lease.runs and lease.runs[-1][1] == start:
        lease.runs[-1][1] = stop
    else:
        lease.runs.append([start, stop])
    lease.blocks += stop - start
