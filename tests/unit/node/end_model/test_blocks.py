"""The allocator: every block has at most one lease, and comes back exactly once."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from languagepipes_node.end_model.blocks import BlockAllocator, BlockError, BlockLease


def ids(lease: BlockLease) -> list[int]:
    return [block for first, count in lease.prefix(lease.blocks) for block in range(first, first + count)]


def test_a_lease_grows_in_place_while_the_next_id_is_free() -> None:
    blocks = BlockAllocator(100)
    lease = blocks.lease(3, expected=10)
    blocks.grow(lease, 7)
    assert lease.prefix(10) == [(0, 10)]


def test_neighbours_leave_each_other_the_room_they_may_want() -> None:
    blocks = BlockAllocator(100)
    leases = [blocks.lease(2, expected=25) for _ in range(4)]
    for _ in range(23):
        for lease in leases:
            blocks.grow(lease, 1)
    assert all(len(lease.runs) == 1 for lease in leases)
    assert blocks.free == 0


def test_with_less_room_than_wanted_neighbours_share_it() -> None:
    blocks = BlockAllocator(64)
    leases = [blocks.lease(1, expected=64) for _ in range(4)]
    for _ in range(15):
        for lease in leases:
            blocks.grow(lease, 1)
    assert blocks.free == 0
    assert sum(len(lease.runs) for lease in leases) <= 8


def test_a_frame_gets_the_first_blocks_only() -> None:
    blocks = BlockAllocator(10)
    lease = blocks.lease(5, expected=5)
    assert lease.prefix(2) == [(0, 2)]
    with pytest.raises(BlockError, match="names 6 blocks, the lease holds 5"):
        lease.prefix(6)


def test_blocks_named_by_a_frame_in_flight_are_not_free() -> None:
    blocks = BlockAllocator(4)
    lease = blocks.lease(4, expected=4)
    blocks.hold(lease)
    blocks.release(lease)
    assert blocks.free == 0
    blocks.release(lease)
    assert blocks.free == 4
    with pytest.raises(BlockError):
        blocks.release(lease)


def test_asking_for_more_than_is_free_changes_nothing() -> None:
    blocks = BlockAllocator(8)
    lease = blocks.lease(5, expected=5)
    with pytest.raises(BlockError, match="4 KV blocks asked, 3 of 8 are free"):
        blocks.grow(lease, 4)
    assert (lease.blocks, blocks.free) == (5, 3)


class Allocator(RuleBasedStateMachine):
    @initialize(total=st.integers(1, 40))
    def start(self, total: int) -> None:
        self.blocks = BlockAllocator(total)
        self.leases: list[BlockLease] = []

    @precondition(lambda self: self.blocks.free)
    @rule(data=st.data())
    def lease(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.blocks.free))
        self.leases.append(self.blocks.lease(count, expected=data.draw(st.integers(0, 50))))

    @precondition(lambda self: self.leases and self.blocks.free)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        before = ids(lease)
        self.blocks.grow(lease, data.draw(st.integers(1, self.blocks.free)))
        assert ids(lease)[: len(before)] == before

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        self.blocks.hold(data.draw(st.sampled_from(self.leases)))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        self.blocks.release(lease)
        if not lease.holders:
            self.leases.remove(lease)

    @invariant()
    def every_block_is_free_or_in_one_lease(self) -> None:
        if not hasattr(self, "blocks"):
            return
        ranges = list(self.blocks.free_ranges())
        free = [block for start, stop in ranges for block in range(start, stop)]
        held = [block for lease in self.leases for block in ids(lease)]
        assert sorted(free + held) == list(range(self.blocks.total))
        assert self.blocks.free == len(free)
        assert self.blocks.used == len(held)
        assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))
        ends = {lease.runs[-1][1]: lease for lease in self.leases}
        assert self.blocks._growing == ends


TestAllocator = Allocator.TestCase
TestAllocator.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
