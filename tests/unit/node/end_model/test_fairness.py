"""Requests and clients that share an engine: who waits for whom, and that nobody waits for ever."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from languagepipes_node.end_model.costs import RingCost
from languagepipes_node.end_model.engine import EngineSettings
from languagepipes_node.end_model.requests import Submission
from languagepipes_node.end_model.scheduler import (
    MOST_PASSES,
    Limits,
    Snapshot,
    blocks_for,
    schedule,
)
from languagepipes_node.end_model.sequences import Sequence
from support.toy_engine import BLOCK_TOKENS, GREEDY, VOCABULARY, MakeRig, Rig, alone

FRAME_TOKENS = 32


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed * 1000 + length).choices(range(VOCABULARY), k=length)


def run_until_first_token(rig: Rig, request: int) -> None:
    for _ in range(500):
        if rig.answer(request):
            return
        with torch.inference_mode():
            rig.engine.step()
    raise AssertionError(f"request {request} got no token: {rig.engine.status}")


def test_a_short_prompt_gets_its_first_token_before_another_clients_long_one(make_rig: MakeRig) -> None:
    rig = make_rig(settings=EngineSettings(shared_cores=True), frame_tokens=16)
    rig.submit(1, prompt_of(80), client="a")
    rig.engine.step()
    rig.submit(2, prompt_of(8), client="b")
    run_until_first_token(rig, 2)
    assert rig.answer(1) == []
    assert sum(batch.tokens for batch in rig.layers[0].batches) > 16 + 8  # the long one went forward too
    rig.run()
    assert rig.answer(1) == alone(prompt_of(80), 8)
    assert rig.answer(2) == alone(prompt_of(8), 8)


def test_one_clients_many_requests_hold_up_another_clients_request_for_one_seat_only(make_rig: MakeRig) -> None:
    rig = make_rig(settings=EngineSettings(max_running=2))
    for request in range(8):
        rig.submit(request, prompt_of(5, request), client="a")
    rig.engine.step()
    rig.submit(8, prompt_of(5, 8), client="b")
    run_until_first_token(rig, 8)
    assert sum(1 for request in range(8) if rig.answer(request)) <= 3
    rig.run()
    assert all(rig.client.finish(request) == "length" for request in range(9))


def test_a_large_request_gets_its_blocks_although_small_ones_keep_coming(make_rig: MakeRig) -> None:
    # It needs 15 of 16 blocks and one in hand for each that runs; a small one fits at any time.
    rig = make_rig(blocks=16, context=64)
    small = iter(range(100, 150))
    rig.submit(next(small), prompt_of(4), max_tokens=12)
    rig.engine.step()
    rig.submit(1, prompt_of(58), max_tokens=4)
    large = None
    while not rig.answer(1):
        while len(rig.engine._sequences) < 4:
            rig.submit(next(small), prompt_of(4), max_tokens=12)  # StopIteration: it starves
            rig.engine._take_commands()
        large = large or rig.engine._sequences.find(1)
        with torch.inference_mode():
            rig.engine.step()
    assert large is not None
    assert large.passed == MOST_PASSES
    rig.run()
    assert rig.answer(1) == alone(prompt_of(58), 4)


@dataclass(frozen=True)
class Asked:
    """A request as drawn: whose, of how many tokens, and how many of them are sent if it runs (None: it waits)."""

    client: str
    length: int
    sent: int | None
    passed: int

    def sequence(self, arrival: int) -> Sequence:
        submission = Submission(arrival, tuple(prompt_of(self.length)), 8, GREEDY, client=self.client)
        sequence = Sequence.of(submission, arrival=arrival, context_limit=1000, stages=2)
        sequence.sent = self.sent or 0
        sequence.passed = self.passed
        return sequence


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    length = draw(st.integers(1, 80))
    sent = draw(st.none() | st.integers(0, length - 1))
    return Asked(draw(st.sampled_from("abc")), length, sent, draw(st.integers(0, MOST_PASSES)) if sent is None else 0)


def snapshot(asked: list[Asked], *, free: int, seats: int) -> Snapshot[Sequence]:
    """Prompts alone, on a ring that takes frames of FRAME_TOKENS, one at a time."""
    sequences = [(one, one.sequence(arrival)) for arrival, one in enumerate(asked)]
    running = [sequence for one, sequence in sequences if one.sent is not None]
    return Snapshot(
        running=running,
        waiting=[sequence for one, sequence in sequences if one.sent is None],
        frames=[],
        free_blocks=free,
        returning_blocks=0,
        limits=Limits(FRAME_TOKENS, 1, BLOCK_TOKENS, len(running) + seats, 1, 1),
        costs=RingCost.of(2),
    )


@settings(deadline=None)
@given(asked=st.lists(requests(), max_size=12), free=st.integers(0, 80), seats=st.integers(0, 6))
def test_chunks_and_seats_are_given_by_the_rules(asked: list[Asked], free: int, seats: int) -> None:
    now = snapshot(asked, free=free, seats=seats)

    decision = schedule(now)

    limits, admitted = now.limits, list(decision.admit)
    running = len(now.running) + len(admitted)
    left = free - sum(blocks_for(sequence.length, BLOCK_TOKENS) for sequence in admitted)
    assert running <= max(limits.max_running, len(now.running))
    assert not admitted or left >= 0

    def has_room(sequence: Sequence) -> bool:
        """A seat and blocks for its tokens, after what was decided."""
        return running < limits.max_running and left >= blocks_for(sequence.length, BLOCK_TOKENS) + running

    # No token of the frame is left to nobody.
    counts = {share.sequence.arrival: share.count for share in decision.shares}
    prompts = [*now.running, *admitted]
    assert decision.tokens <= FRAME_TOKENS
    assert set(counts) <= {sequence.arrival for sequence in prompts}
    if decision.tokens < FRAME_TOKENS:
        assert all(counts.get(sequence.arrival) == sequence.remaining for sequence in prompts)
    # The first in turn goes forward: half of the frame is its own.
    if prompts:
        first = now.in_turn(prompts)[0]
        assert counts[first.arrival] >= min(first.remaining, FRAME_TOKENS // 2)
    # Whose turn was earlier either still has a seat and blocks, or did not fit and is counted as passed.
    for waiting in now.waiting:
        if waiting in admitted:
            continue
        later = [other for other in admitted if now.turns[other.arrival] > now.turns[waiting.arrival]]
        passes = decision.passed.count(waiting)
        assert passes in (0, len(later))
        assert not later or passes or has_room(waiting)
        assert waiting.passed + passes <= MOST_PASSES


@settings(deadline=None)
@given(clients=st.lists(st.sampled_from("abcd"), max_size=16), seats=st.integers(0, 8))
def test_every_clients_first_request_is_admitted_before_any_clients_second(clients: list[str], seats: int) -> None:
    now = snapshot([Asked(client, 2, None, 0) for client in clients], free=1000, seats=seats)

    admitted = [sequence.client for sequence in schedule(now).admit]

    assert len(admitted) == min(seats, len(clients))
    for client in set(clients):
        for other in set(clients) - {client}:
            # Nobody has two seats more than a client that still waits.
            if admitted.count(client) < clients.count(client):
                assert admitted.count(other) <= admitted.count(client) + 1
