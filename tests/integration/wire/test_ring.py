"""A whole ring in one process, over memory and over sockets."""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest
from languagepipes_node.wire.errors import FrameError, RingDown
from support.waiting import eventually
from support.wire_ring import TransportMaker, build_ring, make_plan, one_token, tokens


def test_a_step_goes_round_and_returns_the_wanted_rows(transports: TransportMaker, stack: ExitStack) -> None:
    ring = build_ring(make_plan(), transports, stack)
    info = ring.end.connect()
    assert [entry.name for entry in info.members] == ["end-model", "s1", "s2", "s3"]
    hidden = np.arange(5 * 8, dtype=np.float32).reshape(5, 8)

    ring.end.send(11, tokens(5, wanted=(1, 4)), hidden, 5)

    returned = ring.end.receive(2.0)
    assert returned is not None
    assert (returned.step, returned.rows, returned.busy_microseconds) == (11, 2, [7, 14, 21])
    got = np.frombuffer(returned.hidden, dtype=np.float32).reshape(2, 8).copy()
    returned.release()
    np.testing.assert_array_equal(got, hidden[[1, 4]] + 3)


def test_with_tail_layers_all_rows_return(transports: TransportMaker, stack: ExitStack) -> None:
    ring = build_ring(make_plan(tail=True), transports, stack)
    ring.end.connect()
    ring.end.send(1, tokens(5), np.zeros((5, 8), np.float32), 5)
    returned = ring.end.receive(2.0)
    assert returned is not None
    assert returned.rows == 5


def test_a_chunk_that_wants_no_rows_returns_empty(transports: TransportMaker, stack: ExitStack) -> None:
    ring = build_ring(make_plan(), transports, stack)
    ring.end.connect()
    ring.end.send(1, tokens(5), np.zeros((5, 8), np.float32), 5)
    returned = ring.end.receive(2.0)
    assert returned is not None
    assert (returned.rows, len(returned.hidden)) == (0, 0)


def test_a_new_epoch_replaces_a_running_one(transports: TransportMaker, stack: ExitStack) -> None:
    ring = build_ring(make_plan(), transports, stack)
    first = ring.end.connect()
    second = ring.end.connect()
    assert second.epoch.counter > first.epoch.counter
    ring.end.send(1, one_token(), np.zeros((1, 8), np.float32), 1)
    assert ring.end.receive(2.0) is not None
    assert ring.loops[0].seen == [(second.epoch.counter, 1)]


def test_more_frames_than_the_plan_allows_are_refused_before_they_are_sent(
    transports: TransportMaker, stack: ExitStack
) -> None:
    ring = build_ring(make_plan(frames_in_flight=2), transports, stack)
    ring.end.connect()
    for step in (1, 2):
        ring.end.send(step, one_token(), np.zeros((1, 8), np.float32), 1)
    with pytest.raises(FrameError, match="2 frames are out and 0 are unreleased, at most 2 and 1 may be"):
        ring.end.send(3, one_token(), np.zeros((1, 8), np.float32), 1)


def test_an_idle_ring_stays_up_by_heartbeats(transports: TransportMaker, stack: ExitStack) -> None:
    ring = build_ring(make_plan(), transports, stack)
    ring.end.connect()
    assert ring.end.receive(1.0) is None
    ring.end.send(1, one_token(), np.zeros((1, 8), np.float32), 1)
    assert ring.end.receive(2.0) is not None


def test_a_stage_that_leaves_ends_the_epoch_everywhere_and_the_end_model_learns_the_reason(
    transports: TransportMaker, stack: ExitStack
) -> None:
    ring = build_ring(make_plan(), transports, stack)
    ring.end.connect()
    ring.loops[1].close()
    with pytest.raises(RingDown, match=r"stage 2 \(s2\): is shutting down"):
        ring.end.receive(2.0)
    deadline = time.monotonic() + 2
    while any(loop.communicator.state.epoch for loop in ring.loops):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(RingDown, match=r"stage 1 \(s1\): stage 2 \(s2\) at .* cannot be reached: Connection refused"):
        ring.end.connect()


def test_a_dropped_epoch_names_its_reason_and_the_ring_serves_again(
    transports: TransportMaker, stack: ExitStack
) -> None:
    ring = build_ring(make_plan(), transports, stack)
    ring.end.connect()
    ring.end.drop("step 4 is over its deadline of 1.5 s")
    with pytest.raises(RingDown, match="end-model: step 4 is over its deadline") as raised:
        ring.end.receive(2.0)
    assert raised.value.code == "deadline"
    ring.end.connect()
    ring.end.send(1, one_token(), np.zeros((1, 8), np.float32), 1)
    assert ring.end.receive(2.0) is not None


def test_many_epochs_leave_no_thread_and_no_descriptor_behind(transports: TransportMaker, stack: ExitStack) -> None:
    ring = build_ring(make_plan(), transports, stack)
    ring.end.connect()
    # The last stage's link starts its thread after the hello has returned; a frame comes round after that.
    ring.end.send(1, one_token(), np.zeros((1, 8), np.float32), 1)
    assert ring.end.receive(2.0) is not None
    threads, descriptors = threading.active_count(), len(os.listdir("/dev/fd"))
    for _ in range(10):
        ring.end.connect()
    eventually(
        lambda: threading.active_count() <= threads,
        what=lambda: f"{threads} threads: {threading.enumerate()}",
    )
    eventually(lambda: len(os.listdir("/dev/fd")) <= descriptors)


def test_a_frame_that_came_too_late_to_be_computed_is_given_back(transports: TransportMaker, stack: ExitStack) -> None:
    ring = build_ring(make_plan(), transports, stack)
    ring.end.connect()
    late = ring.loops[0]
    late._stop = True
    late._thread.join()
    ring.end.send(1, one_token(), np.zeros((1, 8), np.float32), 1)
    slots = late.communicator._slots
    eventually(lambda: slots.free == late.communicator.limits.frames_in_flight)
    late.close()
    assert slots.free == late.communicator.limits.frames_in_flight + 1
