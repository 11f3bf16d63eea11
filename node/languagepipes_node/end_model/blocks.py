"""KV blocks of the ring's one block-id space: which lease holds which, and when a block is free again.

A sequence's session holds a `BlockLease`; each frame in flight that names its blocks holds the lease too.
The blocks are free again when the last holder releases them, so no block that a frame still addresses is
written by another sequence. The allocator knows ids only; what a block contains, and where, each member decides.

Consecutive ids are preferred, since a run is one view of a member's cache: a lease grows in place where it
can, and a new lease starts where both it and its neighbour have room to grow. No block is shared, so copy-on-
write does not exist."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field


class BlockError(RuntimeError):
    """A fault inside the engine (too few blocks, released twice), never a client's."""


@dataclass(eq=False)
class BlockLease:
    """Blocks of one session of a sequence, in order: `runs` are half-open `[first, stop)` id ranges.

    expected: blocks that the lease may grow to; a hint for placing neighbours, not a reservation.
    holders: the sequence (if it still holds it) plus the frames in flight that name these blocks.
    """

    expected: int
    runs: list[list[int]] = field(default_factory=list)
    blocks: int = 0
    holders: int = 1

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
        # Free ranges [start, stop), sorted, disjoint and never adjacent.
        self._starts: list[int] = [0]
        self._stops: list[int] = [total]
        self._free = total
        # Where the last run of a live lease ends: whoever is placed there leaves that lease room to grow.
        self._growing: dict[int, BlockLease] = {}

    @property
    def free(self) -> int:
        """Blocks that can be handed out now."""
        return self._free

    @property
    def used(self) -> int:
        """Blocks held by a sequence or a frame in flight."""
        return self.total - self._free

    def free_ranges(self) -> Iterator[tuple[int, int]]:
        """Half-open free ranges, ascending; for tests and for people."""
        return iter(list(zip(self._starts, self._stops, strict=True)))

    def lease(self, blocks: int, *, expected: int) -> BlockLease:
        """A new lease on `blocks` blocks, held once. Raises BlockError if fewer are free: see `free`."""
        lease = BlockLease(expected=max(blocks, expected))
        self.grow(lease, blocks)
        return lease

    def grow(self, lease: BlockLease, blocks: int) -> None:
        """Add `blocks` blocks to a lease. Raises BlockError, and changes nothing, if fewer are free."""
        if blocks > self._free:
            raise BlockError(f"{blocks} KV blocks asked, {self._free} of {self.total} are free")
        blocks -= self._grow_in_place(lease, blocks)
        while blocks:
            index, start = self._place(blocks, hint=max(blocks, lease.room_wanted))
            stop = min(start + blocks, self._stops[index])
            self._take(index, start, stop)
            self._append(lease, start, stop)
            blocks -= stop - start

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
        if lease.runs:
            self._growing.pop(lease.runs[-1][1], None)
        for start, stop in lease.runs:
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
        if lease.runs:
            self._growing.pop(lease.runs[-1][1], None)
        if lease.runs and lease.runs[-1][1] == start:
            lease.runs[-1][1] = stop
        else:
            lease.runs.append([start, stop])
        lease.blocks += stop - start
        self._growing[stop] = lease

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
