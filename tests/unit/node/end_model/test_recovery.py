"""A lost ring: which requests go on, from which KV, for how long they wait, and which one is to blame."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from languagepipes_node.end_model.engine import EngineSettings
from languagepipes_node.end_model.recovery import Outage, Setbacks
from languagepipes_node.end_model.requests import Cancellation, Failure
from languagepipes_node.end_model.sequences import Sequence
from languagepipes_node.wire.errors import RingDown
from support.toy_engine import GREEDY, Gate, MakeRig, Rig, RunThread, Submission, ToyLayer, alone
from support.waiting import eventually

PROMPT = list(range(10))
LONG = list(range(40, 60)) + list(range(20))
QUICK = EngineSettings(reconnect_first_seconds=0.01, reconnect_most_seconds=0.02)


def lose(rig: Rig, *stages: int, code: str = "lost", step: int | None = None) -> None:
    """The ring falls; these stages come back as new processes. The engine has joined again."""
    rig.ring.break_ring("a member was killed")
    rig.engine.lose_ring(RingDown("a member was killed", code, step=step))
    for stage in stages:
        rig.layers[stage - 1] = ToyLayer(rig.plan.stages[stage - 1].layers.start, rig.plan)
        rig.ring.replace_stage(stage, rig.layers[stage - 1])
    rig.engine.join_ring()


def start_of(rig: Rig, *, tokens: int) -> None:
    while len(rig.answer(1)) < tokens:
        with torch.inference_mode():
            rig.engine.step()


@pytest.mark.parametrize("tail", [0, 1])
@pytest.mark.parametrize("lost", [(), (1,), (2,), (3,), (1, 3), (1, 2, 3)])
def test_streams_and_prompts_go_on_with_the_tokens_of_an_undisturbed_run(
    make_rig: MakeRig, lost: tuple[int, ...], tail: int
) -> None:
    rig = make_rig(stages=3, tail=tail, context=96, settings=EngineSettings(max_running=3))
    rig.submit(1, PROMPT, max_tokens=30)
    start_of(rig, tokens=5)
    rig.submit(2, LONG, max_tokens=5)
    rig.submit(3, PROMPT[:3], max_tokens=4)
    rig.submit(4, PROMPT[:2], max_tokens=4)  # waits for a place
    rig.engine.dispatch()
    lose(rig, *lost)
    rig.run()
    assert rig.answer(1) == alone(PROMPT, 30, stages=3, tail=tail)
    assert rig.answer(2) == alone(LONG, 5, stages=3, tail=tail)
    assert rig.answer(3) == alone(PROMPT[:3], 4, stages=3, tail=tail)
    assert rig.answer(4) == alone(PROMPT[:2], 4, stages=3, tail=tail)
    assert rig.engine._sequences.blocks.used == 0


@pytest.mark.parametrize(("lost", "computed_again"), [((), 0), ((1,), 1), ((2,), 2), ((3,), 3), ((1, 2), 2)])
def test_only_stages_up_to_the_last_lost_one_compute_again(
    make_rig: MakeRig, lost: tuple[int, ...], computed_again: int
) -> None:
    rig = make_rig(stages=3)
    rig.submit(1, PROMPT, max_tokens=40)
    start_of(rig, tokens=6)
    for layer in rig.layers:
        layer.batches.clear()
    held = rig.engine._sequences.running[0].kv[-1]
    lose(rig, *lost)
    rig.run()
    for place, layer in enumerate(rig.layers, start=1):
        first = int(layer.batches[0].starts[0])
        assert first == (0 if place <= computed_again else held), f"stage {place}"
    assert rig.engine.status.replays == (1 if lost else 0)


@pytest.mark.parametrize("second", [1, 2, 3])
def test_a_loss_during_the_replay_of_another_goes_on_from_what_all_hold(make_rig: MakeRig, second: int) -> None:
    rig = make_rig(stages=3, frame_tokens=4, frames_in_flight=1, context=96)
    rig.submit(1, LONG, max_tokens=12)
    start_of(rig, tokens=3)
    lose(rig, 2)
    with torch.inference_mode():
        for _ in range(3):  # a part of the replay has returned
            rig.engine.step()
    lose(rig, second)
    rig.run()
    assert rig.answer(1) == alone(LONG, 12, stages=3)


def test_what_a_sequence_must_compute_again_is_a_staircase() -> None:
    sequence = Sequence.of(Submission(1, tuple(range(50)), 9, GREEDY), arrival=1, context_limit=99, stages=3)
    assert (sequence.last_member, sequence.next_stop, sequence.replaying) == (3, 50, False)
    sequence.sent = 40
    sequence.returned(40, 3)
    sequence.lose_kv(2)
    assert (sequence.kv, sequence.sent) == ([0, 0, 40], 0)
    assert (sequence.last_member, sequence.next_stop, sequence.replaying) == (2, 40, True)
    sequence.sent = 10
    sequence.returned(10, 2)
    sequence.lose_kv(1)
    assert (sequence.kv, sequence.last_member, sequence.next_stop) == ([0, 10, 40], 1, 10)
    sequence.sent = 10  # sent, and not returned: the next frame follows it
    assert (sequence.last_member, sequence.next_stop) == (2, 40)
    sequence.sent = 40
    assert (sequence.last_member, sequence.next_stop, sequence.replaying) == (3, 50, False)
    sequence.rewind()
    assert sequence.sent == 0


def test_requests_that_come_while_the_ring_is_down_wait_for_it(make_rig: MakeRig, run_thread: RunThread) -> None:
    rig = make_rig(threads=True, join=False, settings=QUICK, context=200)
    run_thread(rig)
    eventually(lambda: rig.engine.status.ring_ready)
    rig.submit(1, PROMPT, max_tokens=150)
    eventually(lambda: len(rig.answer(1)) > 2)
    rig.ring.break_ring("stage 1 was killed", stay_down=True)
    eventually(lambda: rig.engine.status.recovering)
    assert rig.engine.status.accepting
    assert rig.engine.status.ring_error == "stage 1 was killed"
    rig.submit(2, PROMPT)
    rig.submit(3, PROMPT)
    rig.engine.submit(Cancellation(3))
    rig.ring.heal()
    eventually(lambda: rig.client.finish(2) == "length")
    eventually(lambda: rig.client.finish(1) == "length")
    assert rig.answer(1) == alone(PROMPT, 150)
    assert rig.answer(2) == alone(PROMPT, 8)
    assert 3 not in rig.client.outputs


def test_nobody_waits_longer_than_allowed_and_all_are_served_once_the_ring_is_back(
    make_rig: MakeRig, run_thread: RunThread
) -> None:
    gate = Gate(first_step=8)
    rig = make_rig(threads=True, join=False, settings=replace(QUICK, max_wait_seconds=0.2), alter=gate)
    run_thread(rig)
    eventually(lambda: rig.engine.status.ring_ready)
    rig.submit(1, PROMPT, max_tokens=50)
    eventually(lambda: len(rig.answer(1)) > 2)
    rig.ring.break_ring("stage 1 was killed", stay_down=True)
    eventually(lambda: rig.client.finish(1) == "ring_down")
    assert rig.client.outputs[1][-1] == Failure(1, "ring_down", "stage 1 was killed")
    eventually(lambda: not rig.engine.status.accepting)
    rig.submit(2, PROMPT)
    assert rig.client.outputs[2] == [Failure(2, "ring_down", "stage 1 was killed")]
    gate.open()
    rig.ring.heal()
    eventually(lambda: rig.engine.status.ring_ready)
    rig.submit(3, PROMPT)
    eventually(lambda: rig.client.finish(3) == "length")


def test_without_waiting_a_lost_ring_fails_requests_at_once(make_rig: MakeRig) -> None:
    rig = make_rig(settings=EngineSettings(max_wait_seconds=0))
    rig.submit(1, PROMPT, max_tokens=40)
    start_of(rig, tokens=2)
    rig.engine.lose_ring(RingDown("a member was killed"))
    assert rig.client.finish(1) == "ring_down"


def test_a_request_that_breaks_the_ring_fails_alone(make_rig: MakeRig) -> None:
    """Whatever frame holds the poison ends the epoch, and nothing says which request it was."""
    rig = make_rig(stages=2)
    poison = [60, 60, 60]
    for request, prompt in ((1, PROMPT), (2, poison), (3, PROMPT[:4])):
        rig.submit(request, prompt, max_tokens=6)

    falls = 0
    while not rig.idle:
        assert falls < 20
        try:
            with torch.inference_mode():
                rig.engine.dispatch()
                if any(share.sequence.request_id == 2 for frame in rig.engine._in_flight for share in frame.shares):
                    raise RingDown("stage 1: was killed")
                if (returned := rig.ring.receive(0)) is not None:
                    rig.engine.collect(returned)
        except RingDown:
            falls += 1
            lose(rig, 1)
    assert rig.client.finish(2) == "internal"
    assert rig.answer(1) == alone(PROMPT, 6)
    assert rig.answer(3) == alone(PROMPT[:4], 6)
    assert falls == 4  # twice in company, twice alone


def test_a_member_that_names_the_step_spares_the_others_the_trial(make_rig: MakeRig) -> None:
    rig = make_rig(stages=2, frames_in_flight=2)
    rig.submit(1, PROMPT, max_tokens=6)
    rig.submit(2, PROMPT[:5], max_tokens=6)
    rig.engine.dispatch()
    step = rig.engine._in_flight[0].step
    named = {share.sequence.request_id for share in rig.engine._in_flight[0].shares}
    lose(rig, code="step_failed", step=step)
    suspects = {s.request_id for s in rig.engine._sequences.running if s.suspect}
    assert suspects == named
    rig.run()  # it was chance: all return
    assert rig.answer(1) == alone(PROMPT, 6)
    assert rig.answer(2) == alone(PROMPT[:5], 6)


def test_layers_of_the_end_model_that_raise_end_one_request_and_not_the_process(make_rig: MakeRig) -> None:
    rig = make_rig()
    front = rig.end.front

    def choke(tokens: torch.Tensor, batch: object) -> torch.Tensor:
        if (tokens == 60).any():
            raise IndexError("what token 60 stands for")
        return front(tokens, batch)  # type: ignore[arg-type]

    rig.end.front = choke  # type: ignore[method-assign, assignment]
    rig.submit(1, PROMPT, max_tokens=6)
    rig.submit(2, [60, 1], max_tokens=6)
    rig.submit(3, PROMPT[:4], max_tokens=6)
    rig.run()
    assert rig.client.finish(2) == "internal"
    assert rig.answer(1) == alone(PROMPT, 6)[: len(rig.answer(1))]
    assert rig.client.finish(3) == "length"


def test_a_head_that_raises_ends_the_epoch_and_then_the_one_request_that_makes_it(make_rig: MakeRig) -> None:
    rig = make_rig()
    logits = rig.end.logits

    def choke(rows: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    rig.submit(1, PROMPT, max_tokens=6)
    rig.end.logits = choke  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(RingDown) as caught:
            rig.run()
        assert caught.value.code == "step_failed"
        lose(rig, code="step_failed", step=caught.value.step)
    assert rig.client.finish(1) == "internal"
    rig.end.logits = logits  # type: ignore[method-assign]
    rig.submit(2, PROMPT, max_tokens=6)
    rig.run()
    assert rig.answer(2) == alone(PROMPT, 6)


def test_a_ring_that_falls_again_and_again_fails_a_request_after_max_replays(make_rig: MakeRig) -> None:
    rig = make_rig(settings=EngineSettings(max_replays=2))
    for request in (1, 2):
        rig.submit(request, PROMPT, max_tokens=6)
    falls = 0
    while not (rig.client.finish(1) and rig.client.finish(2)):
        rig.engine.dispatch()
        lose(rig, 1)
        falls += 1
        assert falls < 10
    failures = [rig.client.outputs[request][-1] for request in (1, 2)]
    assert all(isinstance(failure, Failure) and failure.code in ("ring_down", "internal") for failure in failures)


def test_setbacks_are_forgotten_when_a_frame_returns() -> None:
    setbacks = Setbacks()
    setbacks.lost(alone=True, blamed=False)
    setbacks.lost(alone=True, blamed=False)
    assert setbacks.suspect
    assert not setbacks.guilty
    setbacks.lost(alone=True, blamed=False)
    assert not setbacks.guilty
    setbacks.returned()
    assert (setbacks.suspect, setbacks.losses, setbacks.alone, setbacks.replays) == (False, 0, 0, 3)
    setbacks.got_a_token()
    assert setbacks.replays == 0


def test_an_outage_is_timed_from_its_beginning() -> None:
    outage = Outage(max_wait_seconds=10, now=0)
    assert not outage.expired(waiting=1, now=9)
    assert outage.end(now=9) == 9
    assert outage.begin("silence", "silence", now=20)
    assert not outage.begin("silence", "unreachable", now=25)
    assert outage.begin("no answer", "unreachable", now=26)
    assert outage.code == "silence"
    assert not outage.expired(waiting=1, now=29)
    assert outage.expired(waiting=1, now=30)
    outage.end(now=31)
    assert not outage.expired(waiting=1, now=99)


def test_where_stages_may_be_away_waiting_is_timed_from_the_first_request() -> None:
    outage = Outage(max_wait_seconds=10, now=0, from_first_request=True)
    assert not outage.expired(waiting=0, now=1000)
    assert not outage.expired(waiting=1, now=1001)
    assert not outage.expired(waiting=3, now=1010)
    assert outage.expired(waiting=3, now=1011)
    assert not outage.expired(waiting=0, now=1012)
    assert not outage.expired(waiting=1, now=1500)
    assert outage.end(now=1504) == 4
    outage.begin("idle", "unreachable", now=2000)
    assert outage.end(now=3000) == 0
