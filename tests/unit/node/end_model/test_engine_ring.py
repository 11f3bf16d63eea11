"""What happens to requests when the ring is down, slow, or returns what it should not."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import replace

import pytest
import torch
from languagepipes_node.end_model.engine import EngineSettings
from languagepipes_node.end_model.main import drive
from languagepipes_node.end_model.openai.bridge import EngineBridge, EngineGone
from languagepipes_node.end_model.requests import Failure
from languagepipes_node.wire.errors import RingDown
from support.loopback_ring import LoopbackFrame
from support.toy_engine import Gate, MakeRig, RunThread, alone
from support.waiting import eventually

PROMPT = list(range(10))
QUICK = EngineSettings(reconnect_first_seconds=0.01, reconnect_most_seconds=0.02)


def test_a_submission_waits_for_the_ring_to_be_joined(make_rig: MakeRig) -> None:
    rig = make_rig(join=False)
    rig.submit(1, PROMPT)
    assert rig.client.outputs == {}
    assert not rig.engine.status.ring_ready
    rig.engine.join_ring()
    rig.run()
    assert rig.answer(1) == alone(PROMPT, 8)


def test_an_idle_engine_notices_a_lost_ring_and_joins_it_again(make_rig: MakeRig, run_thread: RunThread) -> None:
    rig = make_rig(threads=True, join=False, settings=QUICK)
    run_thread(rig)
    eventually(lambda: rig.engine.status.epoch == 1)
    rig.ring.break_ring("link lost")
    eventually(lambda: rig.engine.status.epoch == 2)


def test_an_idle_engine_sleeps_and_wakes_at_once(make_rig: MakeRig, run_thread: RunThread) -> None:
    rig = make_rig(threads=True, join=False)
    thread = run_thread(rig)
    eventually(lambda: rig.engine.status.ring_ready)
    assert thread.ident is not None
    clock = time.pthread_getcpuclockid(thread.ident)  # of the engine alone: threads of other tests may run still
    before = time.clock_gettime(clock)
    time.sleep(0.3)
    assert time.clock_gettime(clock) - before < 0.15
    rig.submit(1, PROMPT, max_tokens=1)
    eventually(lambda: rig.client.finish(1) == "length")
    assert thread.is_alive()


def test_stopping_answers_what_is_left(make_rig: MakeRig, run_thread: RunThread) -> None:
    gate = Gate(first_step=8)
    rig = make_rig(threads=True, join=False, alter=gate)
    thread = run_thread(rig)
    eventually(lambda: rig.engine.status.ring_ready)
    rig.submit(1, PROMPT, max_tokens=50)
    eventually(lambda: len(rig.answer(1)) > 1)
    rig.engine.stop()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert rig.client.finish(1) == "ring_down"
    gate.open()


def test_a_frame_that_does_not_return_in_time_ends_the_epoch(make_rig: MakeRig) -> None:
    held: list[LoopbackFrame] = []

    def swallow_the_tenth(frame: LoopbackFrame) -> LoopbackFrame | None:
        if frame.step < 10:
            return frame
        held.append(frame)
        return None

    settings = EngineSettings(deadline_slack_seconds=0.05, deadline_unmeasured_seconds=0.3)
    rig = make_rig(alter=swallow_the_tenth, settings=settings)
    rig.submit(1, PROMPT, max_tokens=80)
    started = time.monotonic()
    with pytest.raises(RingDown, match=r"step 10 with 1 tokens did not return within \d+\.\d s") as caught:
        rig.run()
    assert caught.value.code == "deadline"
    # By what the steps before it took, on a machine that may be busy, and not as late as in an unmeasured ring.
    assert time.monotonic() - started < EngineSettings().deadline_unmeasured_seconds / 2
    with pytest.raises(RingDown):
        rig.ring.receive(0)


def test_a_ring_that_has_become_much_slower_serves_again_after_one_lost_epoch(
    make_rig: MakeRig, run_thread: RunThread
) -> None:
    pause = [0.0]

    def slow_down(frame: LoopbackFrame) -> LoopbackFrame:
        time.sleep(pause[0])
        return frame

    settings = replace(QUICK, deadline_slack_seconds=0.2)
    rig = make_rig(threads=True, join=False, settings=settings, alter=slow_down)
    run_thread(rig)
    eventually(lambda: rig.engine.status.ring_ready)
    rig.submit(1, PROMPT)
    eventually(lambda: rig.client.finish(1) == "length")
    before = rig.engine.status.epoch
    pause[0] = 0.6  # the same machines take many times longer
    rig.submit(2, PROMPT, max_tokens=3)
    eventually(lambda: rig.client.finish(2) == "length")
    assert rig.engine.status.epoch == before + 1
    assert rig.answer(2) == alone(PROMPT, 3)


def test_a_frame_of_another_step_ends_the_epoch(make_rig: MakeRig) -> None:
    def misnumber(frame: LoopbackFrame) -> LoopbackFrame:
        frame.step += 1
        return frame

    rig = make_rig(alter=misnumber)
    rig.submit(1, PROMPT)
    with pytest.raises(RingDown, match="step 2 returned, step 1 was due"):
        rig.run()


def test_a_frame_with_too_few_bytes_ends_the_epoch(make_rig: MakeRig) -> None:
    def shorten(frame: LoopbackFrame) -> LoopbackFrame:
        frame.hidden = frame.hidden[:-4]
        return frame

    rig = make_rig(alter=shorten)
    rig.submit(1, PROMPT)
    with pytest.raises(RingDown, match="returned with 60 bytes, 1 rows have 64"):
        rig.run()


@pytest.mark.parametrize("tail", [0, 1])
def test_values_that_are_not_finite_fail_their_own_request_only(make_rig: MakeRig, tail: int) -> None:
    def damage_the_last_row(frame: LoopbackFrame) -> LoopbackFrame:
        if frame.step == 5 and frame.batch.sequences == 2:
            torch.frombuffer(frame.hidden, dtype=torch.float32)[-1] = math.nan
        return frame

    rig = make_rig(alter=damage_the_last_row, tail=tail)
    rig.submit(1, PROMPT[:3], max_tokens=20)
    rig.submit(2, PROMPT[:4], max_tokens=20)
    rig.run()
    failed = [request for request in (1, 2) if rig.client.finish(request) == "internal"]
    assert len(failed) == 1
    other = 3 - failed[0]
    assert rig.answer(other) == alone(PROMPT[: 2 + other], 20, tail=tail)
    assert rig.engine._sequences.blocks.used == 0


def test_outputs_come_in_one_list_a_step(make_rig: MakeRig) -> None:
    rig = make_rig(settings=EngineSettings(shared_cores=True))
    for request in range(5):
        rig.submit(request, PROMPT[:2], max_tokens=10)
    rig.run()
    assert sum(len(outputs) for outputs in rig.client.outputs.values()) == 50
    assert rig.client.lists <= 12


def test_a_prompt_that_arrives_while_a_frame_is_out_is_sent_before_that_has_returned(
    make_rig: MakeRig, run_thread: RunThread
) -> None:
    may_return = threading.Event()

    def hold(frame: LoopbackFrame) -> LoopbackFrame:
        assert may_return.wait(timeout=10)
        return frame

    rig = make_rig(threads=True, join=False, alter=hold)
    run_thread(rig)
    eventually(lambda: rig.engine.status.ring_ready)
    rig.submit(1, PROMPT)
    eventually(lambda: rig.ring.frames_sent == 1)
    rig.submit(2, PROMPT[::-1])
    eventually(lambda: rig.ring.frames_sent == 2)
    assert rig.client.outputs == {}
    may_return.set()
    eventually(lambda: rig.client.finish(2) == "length")
    assert (rig.answer(1), rig.answer(2)) == (alone(PROMPT, 8), alone(PROMPT[::-1], 8))


def test_an_engine_that_fails_tells_nobody_what_it_choked_on(
    make_rig: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    def choke(frame: LoopbackFrame) -> LoopbackFrame:
        raise ValueError(f"what to do with token {4700 + 11}?")

    rig = make_rig(join=False, alter=choke)
    bridge = EngineBridge()
    bridge.attach(rig.engine)
    reasons: list[tuple[str, str] | None] = []
    thread = threading.Thread(target=lambda: reasons.append(drive(rig.engine, bridge)))
    thread.start()
    eventually(lambda: rig.engine.status.ring_ready)
    rig.submit(1, PROMPT)
    thread.join(timeout=10)
    assert reasons == [("EngineFailed", "the engine failed: ValueError")]
    assert rig.client.outputs[1] == [Failure(1, "ring_down", "the engine failed")]
    with pytest.raises(EngineGone, match=r"^the engine failed: ValueError$"):
        bridge.open([])
    assert "in choke" in caplog.text
    assert "4711" not in caplog.text
