"""The scheduler's decisions, as tables: what is running and waiting, and what the next frame carries."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from languagepipes_api.member_settings import SpeculativeDecoding
from languagepipes_node.end_model.costs import RingCost
from languagepipes_node.end_model.scheduler import MOST_PASSES, Decision, FrameView, Limits, Snapshot, schedule


@dataclass(frozen=True)
class View:
    """A sequence as the scheduler sees it."""

    arrival: int
    length: int
    sent: int = 0
    blocks: int = 0
    in_flight: int = 0
    last_step: int = 0
    generated: bool = False
    kv: tuple[int, ...] = (0, 0)
    suspect: bool = False
    client: str = ""
    passed: int = 0
    priority: int = 0
    others: int = 0  # of its blocks, held by others too
    shared_blocks: int = 0
    computes: bytes | None = None
    follows: bool = False
    draft: tuple[int, ...] = ()
    acceptance: float = 0.0

    @property
    def sole_blocks(self) -> int:
        return self.blocks - self.others

    @property
    def last_member(self) -> int:
        return next((place for place, held in enumerate(self.kv) if held > self.sent), len(self.kv))

    @property
    def next_stop(self) -> int:
        return next((held for held in self.kv if held > self.sent), self.length)

    @property
    def replaying(self) -> bool:
        return self.sent < self.kv[-1]

    @property
    def remaining(self) -> int:
        return self.length - self.sent

    @property
    def streaming(self) -> bool:
        return self.generated and self.remaining <= 1


def stream(arrival: int, *, length: int = 10, blocks: int = 4, last_step: int = 0) -> View:
    """A stream whose last token is known."""
    return View(arrival, length, length - 1, blocks, last_step=last_step, generated=True)


def busy_stream(arrival: int, *, length: int = 10, blocks: int = 4) -> View:
    """A stream whose next token is being computed."""
    return View(arrival, length, length, blocks, in_flight=1, generated=True)


def costs(*, token: float = 0.0, fixed: float = 0.01, stages: int = 2) -> RingCost:
    """Every member takes fixed + token · tokens seconds."""
    measured = RingCost.of(stages)
    for tokens in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        measured.add(tokens, [fixed + token * tokens] * (stages + 1))
    return measured


def decide(
    *,
    running: tuple[View, ...] = (),
    waiting: tuple[View, ...] = (),
    frames: tuple[FrameView, ...] = (),
    free: int = 100,
    returning: int = 0,
    frame_tokens: int = 64,
    frames_in_flight: int = 4,
    decode_frames: int = 1,
    prefill_frames: int = 1,
    max_running: int = 8,
    ring: RingCost | None = None,
    speculation: SpeculativeDecoding = "none",
) -> Decision[View]:
    return schedule(
        Snapshot(
            running=running,
            waiting=waiting,
            frames=frames,
            free_blocks=free,
            returning_blocks=returning,
            limits=Limits(frame_tokens, frames_in_flight, 4, max_running, decode_frames, prefill_frames, speculation),
            costs=ring or RingCost.of(2),
        )
    )


def shares(decision: Decision[View]) -> list[tuple[int, int, int, bool]]:
    return [(s.sequence.arrival, s.start, s.count, s.wants_row) for s in decision.shares]


def test_nothing_to_do_sends_nothing() -> None:
    assert decide() == Decision()


def test_a_new_prompt_fills_the_frame_and_asks_for_a_row_only_at_its_end() -> None:
    assert shares(decide(waiting=(View(1, 100),), ring=costs())) == [(1, 0, 64, False)]
    assert shares(decide(running=(View(1, 100, 64, 25),), ring=costs())) == [(1, 64, 36, True)]


def test_frames_grow_from_32_tokens_by_doubling_what_was_measured() -> None:
    ring = RingCost.of(2)
    assert shares(decide(waiting=(View(1, 300),), frame_tokens=256, ring=ring)) == [(1, 0, 32, False)]
    ring.add(32, [0.01] * 3)
    assert shares(decide(waiting=(View(1, 300),), frame_tokens=256, ring=ring)) == [(1, 0, 64, False)]
    rows = tuple(stream(arrival) for arrival in range(80))
    assert decide(running=rows, frame_tokens=256, max_running=100, ring=ring).decode_rows == 64
    ring.forget([1])  # another machine stands there
    assert shares(decide(waiting=(View(1, 300),), frame_tokens=256, ring=ring)) == [(1, 0, 32, False)]


def behind(arrival: int, *, kv: tuple[int, ...], sent: int = 0, length: int = 100) -> View:
    """A stream of which some stages lost their KV."""
    return View(arrival, length, sent, 30, generated=True, kv=kv)


def test_lost_kv_is_computed_again_up_to_the_last_stage_that_lost_it_before_anything_else() -> None:
    decision = decide(running=(behind(1, kv=(0, 99)), stream(2)), waiting=(View(3, 5),), ring=costs())
    assert shares(decision) == [(1, 0, 64, False)]
    assert decision.shares[0].sequence.last_member == 1
    rest = decide(running=(behind(1, kv=(0, 99), sent=64),), ring=costs())
    assert shares(rest) == [(1, 64, 35, False)]
    # What was in flight follows at once, as a step of all members.
    after = decide(running=(behind(1, kv=(0, 99), sent=99),), ring=costs(), frames=(FrameView(0, 35),))
    assert shares(after) == [(1, 99, 1, True)]


def test_a_replay_frame_holds_only_sequences_that_go_as_far() -> None:
    running = (behind(1, kv=(0, 0, 9)), behind(2, kv=(0, 9, 9)), behind(3, kv=(0, 0, 20)))
    assert shares(decide(running=running, ring=costs())) == [(1, 0, 9, False), (3, 0, 20, False)]


def test_a_suspect_is_alone_on_the_ring() -> None:
    suspect = View(2, 10, 9, 4, generated=True, suspect=True)
    running = (stream(1), suspect, View(3, 10, 9, 4, generated=True, suspect=True))
    assert decide(running=running, frames=(FrameView(1, 0),), frames_in_flight=4) == Decision()
    assert shares(decide(running=running)) == [(2, 9, 1, True)]
    assert decide(running=(stream(1),), frames=(FrameView(1, 0, apart=True),), frames_in_flight=4) == Decision()


def test_prompts_of_one_length_share_a_frame_in_order_of_arrival() -> None:
    decision = decide(waiting=(View(1, 30), View(2, 30), View(3, 30)), ring=costs())
    assert shares(decision) == [(1, 0, 30, True), (2, 0, 30, True), (3, 0, 4, False)]
    assert [s.arrival for s in decision.admit] == [1, 2, 3]


def test_a_prompt_is_not_cut_in_favour_of_one_that_is_no_shorter() -> None:
    assert shares(decide(waiting=(View(1, 99), View(2, 99)), ring=costs())) == [(1, 0, 64, False)]
    assert shares(decide(running=(View(1, 140, 100, 35),), waiting=(View(2, 99),), ring=costs())) == [
        (1, 100, 40, True),
        (2, 0, 24, False),
    ]


def test_a_short_prompt_passes_a_long_one_that_keeps_half_of_the_frame() -> None:
    long = View(1, 1000, 64, 250)
    decision = decide(running=(long,), waiting=(View(2, 500), View(3, 10)), free=1000, ring=costs())
    assert shares(decision) == [(1, 64, 32, False), (3, 0, 10, True), (2, 0, 22, False)]
    # What nobody wants goes back to the long one.
    rest = decide(running=(long,), waiting=(View(3, 10),), ring=costs())
    assert shares(rest) == [(1, 64, 54, False), (3, 0, 10, True)]


def test_of_the_least_budget_a_short_prompt_gets_half_too() -> None:
    running = (stream(1), View(2, 1000, 64, 250))
    decision = decide(running=running, waiting=(View(3, 2),), ring=costs(fixed=0.3, token=0.5))
    assert shares(decision) == [(1, 9, 1, True), (2, 64, 2, False), (3, 0, 2, True)]


def test_a_clients_short_prompts_do_not_keep_another_clients_long_one_waiting() -> None:
    long = View(1, 1000, 64, 250, client="a")
    waiting = (View(2, 20, client="a"), View(3, 20, client="a"), View(4, 500, client="b"), View(5, 9, client="c"))
    decision = decide(running=(long,), waiting=waiting, free=1000, ring=costs())
    assert shares(decision) == [(1, 64, 32, False), (5, 0, 9, True), (4, 0, 23, False)]


def test_a_short_prompt_does_not_take_the_seat_of_a_long_one() -> None:
    running = (View(1, 1000, 64, 250), View(2, 400, 64, 100))
    waiting = (View(3, 500), View(4, 10))
    one_seat = decide(running=running, waiting=waiting, free=1000, max_running=3, ring=costs())
    assert shares(one_seat) == [(1, 64, 32, False), (2, 64, 32, False)]
    two_seats = decide(running=running, waiting=waiting, free=1000, max_running=4, ring=costs())
    assert shares(two_seats) == [(1, 64, 32, False), (4, 0, 10, True), (2, 64, 22, False)]
    assert two_seats.passed == ()


def test_seats_go_to_each_clients_first_before_any_clients_second() -> None:
    waiting = (*(View(n, 4, client="a") for n in range(4)), View(4, 4, client="b"), View(5, 4, client="c"))
    assert [s.arrival for s in decide(waiting=waiting, max_running=4).admit] == [0, 4, 5, 1]
    # Who runs has had a turn, whatever the order of arrival.
    running = (View(0, 10, 9, 4, generated=True, client="a"),)
    assert [s.arrival for s in decide(running=running, waiting=waiting[1:], max_running=3).admit] == [4, 5]


def test_all_ready_streams_and_a_chunk_travel_together() -> None:
    decision = decide(running=(stream(1), stream(2)), waiting=(View(3, 100),), ring=costs(token=0.001))
    # A step of the 3 rows to come takes 39 ms, 3.2 times that is 124.8 ms: 31 tokens, 2 of them the rows'.
    assert shares(decision) == [(1, 9, 1, True), (2, 9, 1, True), (3, 0, 29, False)]
    assert decision.decode_rows == 2


def test_a_step_with_a_chunk_takes_at_most_a_quarter_of_a_second_a_member() -> None:
    decision = decide(running=(stream(1),), waiting=(View(2, 100),), ring=costs(fixed=0.2, token=0.005))
    assert shares(decision) == [(1, 9, 1, True), (2, 0, 9, False)]


def test_prompts_go_forward_however_slow_chunks_are() -> None:
    decision = decide(running=(stream(1),), waiting=(View(2, 100),), ring=costs(fixed=0.3, token=0.5))
    assert shares(decision) == [(1, 9, 1, True), (2, 0, 4, False)]


def test_with_shared_cores_a_chunk_waits_for_the_streams_frame() -> None:
    decision = decide(running=(busy_stream(1),), waiting=(View(2, 100),), frames=(FrameView(1, 0),), prefill_frames=2)
    assert decision == Decision()


def test_on_cores_of_their_own_a_chunk_fills_idle_members_beside_the_streams_frame() -> None:
    decision = decide(
        running=(busy_stream(1),),
        waiting=(View(2, 100),),
        frames=(FrameView(1, 0),),
        prefill_frames=4,
        decode_frames=4,
        ring=costs(token=0.001),
    )
    # 3 × a decode step of the two rows that there will be, less the row that runs.
    assert shares(decision) == [(2, 0, 25, False)]


def test_one_stream_ahead_of_a_burst_does_not_hold_it_back() -> None:
    waiting = tuple(View(arrival, 10) for arrival in range(2, 17))
    alone = decide(running=(busy_stream(1),), waiting=(View(2, 100),), ring=costs(token=0.001))
    burst = decide(running=(busy_stream(1),), waiting=waiting, ring=costs(token=0.001))
    # 3.2 × a decode step of 2 rows, and of the 8 that may run, less the row that runs.
    assert (alone.tokens, burst.tokens) == (27, 46)


@pytest.mark.parametrize("decode_frames", [1, 4])
def test_a_chunk_that_attends_to_much_is_smaller(decode_frames: int) -> None:
    ring = costs(token=0.001)
    for context in (100, 3000) * 20:
        ring.add(64, [0.01 + 64 * (0.001 + 1e-6 * context)] * 3, pairs=64 * context)

    def chunk(sent: int) -> int:
        prompt = View(2, 4000, sent=sent, blocks=1000)
        decision = decide(
            running=(stream(1), prompt), ring=ring, frame_tokens=512, decode_frames=decode_frames, prefill_frames=4
        )
        return next(share.count for share in decision.shares if share.sequence is prompt)

    first, last = chunk(0), chunk(3000)
    # At 3,000 tokens of context a token costs four times what it costs without any.
    assert first / last == pytest.approx(4, rel=0.3)


def test_frames_never_exceed_the_plans_number() -> None:
    frames = (FrameView(0, 64),) * 4
    assert decide(waiting=(View(9, 100),), frames=frames, prefill_frames=8) == Decision()


def test_chunks_of_one_prompt_are_in_flight_back_to_back() -> None:
    prompt = View(1, 200, 64, 50, in_flight=1)
    assert decide(running=(prompt,), frames=(FrameView(0, 64),), prefill_frames=1) == Decision()
    assert decide(running=(prompt,), frames=(FrameView(0, 64),), prefill_frames=2).shares[0].start == 64


def test_a_single_prompt_is_cut_so_that_members_work_at_once() -> None:
    decision = decide(
        waiting=(View(1, 256),),
        frame_tokens=512,
        prefill_frames=4,
        ring=costs(fixed=0.001, token=0.001, stages=3),
    )
    assert 16 <= decision.tokens <= 64


def test_without_pipelining_a_prompt_is_one_frame() -> None:
    assert decide(waiting=(View(1, 256),), frame_tokens=512, ring=costs(token=0.001)).tokens == 256


def test_streams_split_into_micro_batches_when_rows_cost_more_than_frames() -> None:
    running = tuple(stream(arrival) for arrival in range(6))
    compute_bound = costs(fixed=0.0001, token=0.01)
    assert decide(running=running, decode_frames=3, ring=compute_bound).decode_rows == 2
    memory_bound = costs(fixed=0.01, token=0.00001)
    assert decide(running=running, decode_frames=1, ring=memory_bound).decode_rows == 6


def test_the_longest_unserved_streams_go_first() -> None:
    running = tuple(stream(arrival, last_step=10 - arrival) for arrival in range(6))
    decision = decide(running=running, decode_frames=3, ring=costs(fixed=0.0001, token=0.01))
    assert sorted(s.sequence.arrival for s in decision.shares) == [4, 5]


def test_the_youngest_gives_way_when_a_stream_needs_a_block() -> None:
    # Length 17 with 4 blocks of 4: the 17th token needs a fifth.
    running = (stream(1, length=17), stream(2), stream(3))
    decision = decide(running=running, free=0)
    assert [s.arrival for s in decision.preempt] == [3]
    assert shares(decision) == [(1, 16, 1, True), (2, 9, 1, True)]


def test_a_clients_second_gives_way_before_another_clients_first() -> None:
    clients = {1: "a", 2: "a", 3: "b"}
    running = tuple(
        View(n, 17 if n == 3 else 10, 16 if n == 3 else 9, 4, generated=True, client=clients[n]) for n in clients
    )
    decision = decide(running=running, free=0)
    assert [s.arrival for s in decision.preempt] == [2]
    assert sorted(shares(decision)) == [(1, 9, 1, True), (3, 16, 1, True)]


def test_the_youngest_itself_gives_way_if_it_is_the_one_in_need() -> None:
    decision = decide(running=(stream(1), stream(2, length=17)), free=0)
    assert [s.arrival for s in decision.preempt] == [2]
    assert shares(decision) == [(1, 9, 1, True)]


def test_a_prompt_that_gives_way_is_not_in_the_frame() -> None:
    decision = decide(running=(stream(1, length=17), View(2, 50, 20, 13)), free=0)
    assert [s.arrival for s in decision.preempt] == [2]
    assert shares(decision) == [(1, 16, 1, True)]


def test_nobody_gives_way_while_enough_blocks_are_on_their_way_back() -> None:
    decision = decide(running=(stream(1, length=17), stream(2)), free=0, returning=4)
    assert decision.preempt == ()
    assert shares(decision) == [(2, 9, 1, True)]


def test_a_block_on_its_way_back_is_promised_to_one_stream_only() -> None:
    running = (stream(1, length=17), stream(2, length=17), stream(3))
    decision = decide(running=running, free=0, returning=1)
    assert [s.arrival for s in decision.preempt] == [3]
    assert shares(decision) == [(2, 16, 1, True)]


def test_blocks_of_a_victim_in_flight_are_waited_for() -> None:
    decision = decide(
        running=(stream(1, length=17), View(2, 50, 20, 13, in_flight=1)), free=0, frames=(FrameView(0, 20),)
    )
    assert [s.arrival for s in decision.preempt] == [2]
    assert decision.shares == ()


def test_nobody_is_let_in_who_would_drive_out_who_runs() -> None:
    # 12 tokens and the next one need 4 blocks, and each of two streams keeps one in hand.
    waiting = (View(3, 12),)
    assert decide(running=(stream(1), stream(2)), waiting=waiting, free=5).admit == ()
    assert len(decide(running=(stream(1), stream(2)), waiting=waiting, free=6).admit) == 1


def test_one_that_does_not_fit_is_passed_by_those_that_do() -> None:
    first = View(1, 100)
    decision = decide(waiting=(first, View(2, 4), View(3, 4)), free=10)
    assert [s.arrival for s in decision.admit] == [2, 3]
    assert decision.passed == (first, first)


def test_nobody_passes_one_that_was_passed_often_enough() -> None:
    others = (View(2, 4), View(3, 4))
    nearly, enough = View(1, 100, passed=MOST_PASSES - 1), View(1, 100, passed=MOST_PASSES)
    assert [s.arrival for s in decide(waiting=(nearly, *others), free=10).admit] == [2]
    assert decide(waiting=(enough, *others), free=10) == Decision()
    # Those before it in turn do not pass it.
    assert [s.arrival for s in decide(waiting=(View(0, 4), enough, *others), free=10).admit] == [0]


def test_blocks_are_promised_to_one_newcomer_only() -> None:
    # 12 tokens and the next one: 4 blocks each, and one in hand for the first.
    assert [s.arrival for s in decide(waiting=(View(1, 12), View(2, 12)), free=7).admit] == [1]
    assert [s.arrival for s in decide(waiting=(View(1, 12), View(2, 12)), free=8).admit] == [1, 2]


def test_no_more_run_than_allowed() -> None:
    assert len(decide(waiting=tuple(View(n, 4) for n in range(5)), max_running=3).admit) == 3


def test_a_sequence_put_back_waits_until_its_frames_have_returned() -> None:
    put_back = View(1, 10, in_flight=1)
    assert decide(waiting=(put_back,), frames=(FrameView(1, 0),), prefill_frames=2).admit == ()
    decision = decide(waiting=(put_back, View(2, 10)), frames=(FrameView(1, 0),), prefill_frames=2)
    assert ([s.arrival for s in decision.admit], decision.passed) == ([2], (put_back,))


@pytest.mark.parametrize(
    ("fixed", "token", "best"),
    [(0.01, 0.0, 3), (0.0, 0.01, 3), (0.01, 0.01, 3)],
    ids=["memory", "compute", "both"],
)
def test_micro_batches_in_flight_minimise_the_time_of_a_token(fixed: float, token: float, best: int) -> None:
    ring = costs(fixed=fixed, token=token, stages=2)
    chosen = ring.micro_batches(12, most=8)

    def period(m: int) -> float:
        rows = -(-12 // m)
        return max(ring.round(rows), m * ring.slowest(rows))

    assert period(chosen) == min(period(m) for m in range(1, 9))
    assert chosen <= best


def test_one_micro_batch_until_costs_are_measured() -> None:
    assert RingCost.of(2).micro_batches(12, most=8) == 1


def test_estimates_follow_what_is_measured() -> None:
    ring = RingCost.of(1)
    assert ring.expected(1) is None
    ring.add(1, [0.01, 0.02])
    ring.add_turn(1, 0.03, replay=False, alone=True)
    ring.add(100, [0.1, 0.4])
    assert ring.slowest(1) == pytest.approx(0.02)
    assert ring.slowest(50) == pytest.approx(0.02 + 0.38 * 49 / 99)
    assert ring.round(200) == pytest.approx(1.0)
    assert ring.expected(200) is None, "no frame of about that size has returned"
    ring.add_turn(100, 0.5, replay=False, alone=True)
    assert ring.expected(200) == pytest.approx(1.0)
    assert ring.expected(300) is None
    assert ring.expected(100, replay=True) is None
    for _ in range(40):
        ring.add(1, [0.01, 0.04])
    assert ring.slowest(1) == pytest.approx(0.04, rel=0.01)


def test_what_is_expected_of_a_frame_follows_a_slow_link_that_no_busy_time_shows() -> None:
    ring = RingCost.of(2)
    for tokens in (32, 64):
        ring.add(tokens, [0.001, 0.001, 0.001])
        ring.add_turn(tokens, 0.01 * tokens, replay=False, alone=True)
        ring.add_turn(tokens, 0.002 * tokens, replay=False, alone=False)
        ring.add_turn(tokens, 0.005 * tokens, replay=True, alone=True)
    assert ring.round(64) == pytest.approx(0.003)
    assert ring.expected(64) == pytest.approx(0.64)
    assert ring.expected(128) == pytest.approx(1.28)
    assert ring.expected(64, alone=False) == pytest.approx(0.128), "it follows another one over one link"
    assert ring.expected(64, replay=True, alone=False) == pytest.approx(0.32), "none followed another one yet"
    ring.forget([1])
    assert ring.expected(32) is None


def test_after_a_replay_other_frames_grow_from_the_start_again() -> None:
    ring = RingCost.of(1)
    for tokens in (32, 64, 128):
        ring.add(tokens, [0.01, 0.01])
        ring.add_turn(tokens, 0.02, replay=True, alone=True)
    assert (ring.largest_frame(replay=True), ring.largest_frame()) == (256, 32)
    ring.add_turn(32, 0.02, replay=False, alone=True)
    assert ring.largest_frame() == 64


def found(arrival: int, *, length: int, tokens: int, **fields: object) -> View:
    """One that waits, and would begin behind so many tokens whose KV is there."""
    return View(arrival, length, tokens, kv=(tokens, tokens), **fields)  # type: ignore[arg-type]


def test_the_first_chunk_begins_behind_what_is_known() -> None:
    assert shares(decide(waiting=(found(1, length=100, tokens=40),), ring=costs())) == [(1, 40, 60, True)]
    assert shares(decide(waiting=(found(1, length=200, tokens=40),), ring=costs())) == [(1, 40, 64, False)]
    assert shares(decide(waiting=(found(1, length=41, tokens=40),), ring=costs())) == [(1, 40, 1, True)]


def test_a_chunk_that_begins_late_shares_the_budget_by_what_is_left_of_it() -> None:
    # 30 tokens are left of the second, so it is the shorter one although its prompt is longer.
    waiting = (View(1, 100), found(2, length=230, tokens=200))
    assert shares(decide(waiting=waiting, ring=costs())) == [(1, 0, 34, False), (2, 200, 30, True)]


def test_of_those_that_begin_alike_one_computes_the_beginning() -> None:
    alike = tuple(View(arrival, 20, computes=b"first") for arrival in (1, 2, 3))
    other = View(4, 20, computes=b"other")
    assert shares(decide(waiting=(*alike, other), ring=costs())) == [(1, 0, 20, True), (4, 0, 20, True)]
    assert not decide(waiting=alike, ring=costs()).passed


def test_one_whose_beginning_is_on_its_way_waits_and_is_not_passed() -> None:
    running, waiting = View(1, 90, 64, 23, in_flight=1), View(2, 90, 32, kv=(32, 32), computes=b"x", follows=True)
    decision = decide(running=(running,), waiting=(waiting, View(3, 20)), ring=costs())
    assert [(s.sequence.arrival, s.start) for s in decision.shares] == [(1, 64), (3, 0)]
    assert not decision.passed


def test_if_the_first_of_those_that_begin_alike_does_not_fit_the_next_starts() -> None:
    waiting = (View(1, 60, computes=b"first"), View(2, 20, computes=b"first"))
    decision = decide(waiting=waiting, free=8, ring=costs())
    assert shares(decision) == [(2, 0, 20, True)]
    assert [one.arrival for one in decision.passed] == [1]


def test_blocks_that_it_shares_with_who_runs_need_not_be_free() -> None:
    # 44 tokens and the next one take 12 blocks of 4; one more is kept for who runs.
    running = (busy_stream(1),)
    for shared, starts in ((10, True), (9, False), (0, False)):
        waiting = found(2, length=44, tokens=40, shared_blocks=shared)
        assert bool(decide(running=running, waiting=(waiting,), free=3, ring=costs()).admit) is starts


def test_blocks_that_others_hold_too_are_not_freed_by_who_gives_way() -> None:
    row = stream(1, length=17)  # its next token needs a fifth block
    shared, last = View(2, 10, 10, 3, generated=True, others=3), View(3, 10, 10, 3, generated=True, others=1)
    assert [one.arrival for one in decide(running=(row, shared, last), free=0).preempt] == [3]
    shared, last = View(3, 10, 10, 3, generated=True, others=3), View(2, 10, 10, 3, generated=True, others=1)
    assert [one.arrival for one in decide(running=(row, last, shared), free=0).preempt] == [3, 2]


def drafting(arrival: int, *, length: int = 10, blocks: int = 4, chance: float = 0.9) -> View:
    """A stream whose last token is known, and 15 more are drafted."""
    return View(arrival, length, length - 1, blocks, generated=True, draft=tuple(range(15)), acceptance=chance)


def drafted(decision: Decision[View]) -> list[int]:
    return [len(share.drafts) for share in decision.shares]


@pytest.mark.parametrize(
    ("speculation", "ring", "expected"),
    [
        pytest.param("none", costs(), 0, id="switched off"),
        pytest.param("auto", costs(), 6, id="rows that cost nothing, as far as its own blocks go"),
        pytest.param("auto", costs(token=0.01, fixed=0.0), 0, id="rows that cost what a frame does"),
        pytest.param("auto", RingCost.of(2), 0, id="costs that nobody knows"),
        pytest.param("ngram", costs(token=0.01, fixed=0.0), 6, id="whatever it costs"),
    ],
)
def test_drafts_follow_a_row_where_they_pay(speculation: SpeculativeDecoding, ring: RingCost, expected: int) -> None:
    decision = decide(running=(drafting(1),), ring=ring, speculation=speculation)
    assert drafted(decision) == [expected]
    share = decision.shares[0]
    assert (share.start, share.count, share.known_stop, share.wants_row) == (9, 1 + expected, 10, True)
    assert share.rows == 1 + expected
    assert (decision.decode_rows, decision.drafted, decision.chunk_tokens) == (1, expected, 0)


@pytest.mark.parametrize(("length", "blocks", "expected"), [(8, 2, 0), (9, 2, 3), (9, 3, 3), (10, 3, 2), (8, 4, 8)])
def test_drafts_lie_in_blocks_that_the_row_needs_anyhow(length: int, blocks: int, expected: int) -> None:
    """Even if no block is free, and whether the row's own block is there or about to be given."""
    row = drafting(1, length=length, blocks=blocks)
    assert drafted(decide(running=(row,), free=1, speculation="ngram")) == [expected]


@pytest.mark.parametrize(
    "beside",
    [
        pytest.param({"waiting": (View(2, 20),)}, id="a prompt that starts"),
        pytest.param({"running": (drafting(1), View(2, 20, 8, 5))}, id="a prompt that goes on"),
        pytest.param({"running": (drafting(1), View(2, 20, 20, 5))} | {"frames": (FrameView(0, 12),)}, id="a chunk"),
        pytest.param({"running": (drafting(1, length=9, blocks=2), View(2, 9, 9, 9))} | {"free": 0}, id="no block"),
    ],
)
def test_no_draft_takes_time_from_a_prompt_or_a_block_from_anybody(beside: dict[str, tuple[View, ...]]) -> None:
    asked = {"running": (drafting(1),), "decode_frames": 2, "prefill_frames": 2, "ring": costs(), **beside}
    assert decide(**asked, speculation="ngram").drafted == 0  # type: ignore[arg-type]
    assert shares(decide(**asked, speculation="ngram")) == shares(decide(**asked))  # type: ignore[arg-type]


def test_a_frame_holds_no_more_drafts_than_tokens() -> None:
    rows = tuple(drafting(arrival, blocks=8) for arrival in range(6))
    for speculation in ("auto", "ngram"):
        decision = decide(running=rows, frame_tokens=20, ring=costs(), speculation=speculation)  # type: ignore[arg-type]
        assert decision.decode_rows == 6
        assert 18 <= decision.tokens <= 20


def test_a_sequence_that_is_tried_apart_drafts_nothing() -> None:
    suspect = View(1, 10, 9, 4, generated=True, suspect=True, draft=(1, 2), acceptance=0.9)
    assert drafted(decide(running=(suspect,), ring=costs(), speculation="ngram")) == [0]
