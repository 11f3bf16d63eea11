"""Random lives of an engine: whatever comes and goes, blocks, frames and tokens keep their rules."""

from __future__ import annotations

import functools
import random
from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from languagepipes_node.end_model.blocks import BlockLease
from languagepipes_node.end_model.engine import Engine, EngineSettings
from languagepipes_node.end_model.requests import Cancellation
from languagepipes_node.end_model.scheduler import MOST_PASSES
from languagepipes_node.wire.errors import RingDown
from support.loopback_ring import LoopbackRing
from support.toy_engine import VOCABULARY, Client, Rig, ToyEnd, ToyLayer, alone, make_plan


@functools.cache
def expected(prompt: tuple[int, ...], max_tokens: int, tail: int) -> list[int]:
    return alone(list(prompt), max_tokens, tail=tail)


class InvariantChecker:
    """Checks an engine's state between two moves."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.computed: dict[int, tuple[BlockLease, int, tuple[int, ...]]] = {}
        self.frames_seen = 0

    def rewound(self) -> None:
        """The epoch is over: each sequence goes on from what all stages hold."""
        for sequence in self.rig.engine._sequences.running:
            if sequence.lease is not None:
                self.computed[sequence.arrival] = (sequence.lease, sequence.kv[0], ())

    def check(self) -> None:
        sequences, in_flight = self.rig.engine._sequences, self.rig.engine._in_flight
        plan = self.rig.plan

        # Each block holds nothing, or is known and idle, or is held; by several sessions only if it is or was known.
        leases = {id(s.lease): s.lease for s in sequences.running if s.lease is not None}
        leases |= {id(lease): lease for frame in in_flight for lease in frame.leases}
        holders = Counter(block for lease in leases.values() for block in lease.ids)
        table, cached = sequences.blocks, sequences.blocks.cached
        empty = [block for start, stop in table.free_ranges() for block in range(start, stop)]
        idle = list(cached._idle)
        assert sorted([*empty, *idle, *holders]) == list(range(plan.kv_blocks))
        assert table.used == len(holders)
        assert table.free == len(empty) + len(idle)
        assert all(users == holders[block] for block, users in cached._users.items())
        assert all(cached.users(block) == count for block, count in holders.items() if count > 1)
        assert {key: block for block, key in cached._key_of.items()} == cached._block_of
        assert set(cached._key_of) <= {*idle, *cached._users}
        in_flight_only = set(leases) - {id(s.lease) for s in sequences.running}
        assert sequences.returning_blocks == sum(leases[key].returning for key in in_flight_only)

        # Frames keep the plan's limits, and a sequence is in at most one frame that samples for it.
        assert len(in_flight) <= plan.frames_in_flight
        for frame in in_flight:
            assert 1 <= frame.batch.tokens <= plan.frame_tokens
        sampling = [s.request_id for frame in in_flight for s in frame.asking]
        assert len(sampling) == len(set(sampling))
        for sequence in sequences.everyone():
            assert sequence.in_flight == sum(
                share.sequence is sequence for frame in in_flight for share in frame.shares
            )

        # Every token is computed exactly once for each session and epoch, in order.
        for frame in in_flight:
            if frame.step <= self.frames_seen:
                continue
            self.frames_seen = frame.step
            for share, lease in zip(frame.shares, frame.leases, strict=True):
                before, end, drafts = self.computed.get(share.sequence.arrival, (None, 0, ()))
                size, found = plan.kv_block_tokens, share.sequence.known_blocks
                if before is lease:
                    # What was drafted rightly was computed with what it was drafted behind.
                    right = share.start - end
                    assert 0 <= right <= len(drafts)
                    assert tuple(share.sequence.tokens[end : share.start]) == drafts[:right]
                else:
                    assert share.start == found * size
                # What is known, or somebody else's too, is never written.
                written = lease.ids[share.start // size : -(-(share.start + share.count) // size)]
                assert all(holders[block] == 1 and block not in cached._key_of for block in written)
                assert share.sequence.kv[0] <= share.start + share.count
                self.computed[share.sequence.arrival] = (lease, share.known_stop, share.drafts)

        # Nobody is passed for ever.
        assert all(s.passed <= MOST_PASSES for s in sequences.everyone())

        # Both lists are in order of arrival, as the scheduler is promised.
        for group in (sequences.running, sequences.waiting):
            assert [s.arrival for s in group] == sorted(s.arrival for s in group)
        assert len(sequences.running) <= self.rig.engine._settings.max_running


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_random_lives_keep_the_rules_and_give_every_request_its_tokens(data: st.DataObject) -> None:
    tail = data.draw(st.integers(0, 1), label="tail layers")
    plan = make_plan(
        tail=tail,
        blocks=data.draw(st.sampled_from([8, 9, 10, 12, 16, 24]), label="blocks"),
        context=32,
        frame_tokens=data.draw(st.integers(2, 12), label="frame tokens"),
        frames_in_flight=data.draw(st.integers(1, 4), label="frames in flight"),
    )
    layers = [ToyLayer(stage.layers.start, plan) for stage in plan.stages]
    end, client = ToyEnd(plan), Client()
    ring = LoopbackRing(layers, hidden_size=16, dtype=torch.float32, tail_layers=tail > 0, threads=False)
    engine = Engine(
        end,
        ring,
        plan=plan,
        settings=EngineSettings(
            max_running=data.draw(st.sampled_from([1, 2, 4, 6]), label="max running"),
            shared_cores=data.draw(st.booleans(), label="shared cores"),
            prefix_cache=data.draw(st.sampled_from([True, True, True, False]), label="prefix cache"),
            speculation=data.draw(st.sampled_from(["ngram", "ngram", "auto", "none"]), label="speculation"),
            idle_seconds=0.0,
            max_replays=1000,
        ),
        deliver=client.deliver,
    )
    rig = Rig(plan, engine, ring, end, layers, client)
    engine.join_ring()
    checker = InvariantChecker(rig)
    asked: dict[int, tuple[tuple[int, ...], int]] = {}
    cancelled: set[int] = set()
    moves = data.draw(
        st.lists(
            st.sampled_from(
                ["submit", "submit", "submit", "cancel", "dispatch", "dispatch", "collect", "collect", "go on", "lose"]
            ),
            min_size=12,  # short lives bring blocks into few states
            max_size=40,
        ),
        label="moves",
    )
    for move in moves:
        if move == "submit":
            request = len(asked)
            # Few different prompts, so that what is expected is computed once; most begin alike.
            length = data.draw(st.sampled_from([1, 3, 4, 5, 8, 13, 20, 20]), label="prompt length")
            text = data.draw(st.sampled_from([1, 1, 2]), label="text")
            alphabet = data.draw(st.sampled_from([VOCABULARY, 3]), label="different tokens")  # of few, much is drafted
            prompt = tuple(random.Random(text).choices(range(alphabet), k=length))
            choices = data.draw(st.sampled_from([1, 1, 3]), label="choices")
            tokens = data.draw(st.sampled_from([1, 2, 5, 11]), label="max tokens")
            by = data.draw(st.sampled_from("abc"), label="client")
            domain = data.draw(st.sampled_from(["", "", "other"]), label="domain")
            for choice in range(request, request + choices):
                asked[choice] = (prompt, tokens)
                rig.submit(choice, list(prompt), max_tokens=tokens, client=by, cache_domain=domain)
        elif move == "cancel" and asked:
            request = data.draw(st.sampled_from(sorted(asked)), label="cancelled")
            if rig.client.finish(request) is None:
                cancelled.add(request)
            engine.submit(Cancellation(request))
        elif move == "lose":
            lost = data.draw(st.sets(st.sampled_from([1, 2])), label="stages that lost their KV")
            ring.break_ring("a member was killed")
            engine.lose_ring(RingDown("a member was killed"))
            for stage in lost:
                layers[stage - 1] = ToyLayer(stage, plan)
                ring.replace_stage(stage, layers[stage - 1])
            engine.join_ring()
            checker.rewound()
        elif move == "go on":
            for _ in range(4):
                engine.dispatch()
                checker.check()
                if (returned := ring.receive(0)) is not None:
                    engine.collect(returned)
                checker.check()
        elif move == "dispatch":
            engine.dispatch()
        elif (returned := ring.receive(0)) is not None:
            engine.collect(returned)
        checker.check()

    steps = 0
    while not rig.idle:
        engine.dispatch()
        checker.check()
        if (returned := ring.receive(0)) is not None:
            engine.collect(returned)
        checker.check()
        steps += 1
        assert steps < 3000, "someone starves"
    for request, (prompt, max_tokens) in asked.items():
        answer = expected(prompt, max_tokens, tail)
        if request in cancelled:
            assert rig.answer(request) == answer[: len(rig.answer(request))]
        else:
            assert rig.answer(request) == answer
            assert rig.client.finish(request) == "length"
    assert engine._sequences.blocks.used == 0
    assert engine._sequences.returning_blocks == 0
