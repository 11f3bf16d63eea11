"""Frames that are right: what is built is what is read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from languagepipes_node.model.batch import Batch
from languagepipes_node.wire import frame as frames
from languagepipes_node.wire.close import Close
from languagepipes_node.wire.errors import FrameError
from languagepipes_node.wire.frame import FrameLimits
from languagepipes_node.wire.hello import parse_close
from languagepipes_node.wire.ring import Epoch
from support.wire_ring import int32, make_plan, tokens

LIMITS = FrameLimits.from_plan(make_plan(kv_blocks=64, frame_tokens=96))
EPOCH = Epoch(3, b"abcdefgh")


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Any batch that the limits allow."""
    counts, starts, run_counts, runs = [], [], [], []
    for _ in range(draw(st.integers(1, 24))):
        count = draw(st.integers(1, 4))
        start = draw(st.integers(0, LIMITS.max_context - count))
        blocks = -(-(start + count) // LIMITS.block_tokens)
        own = []
        while blocks:
            length = draw(st.integers(1, blocks))
            own.append((draw(st.integers(0, LIMITS.kv_blocks - length)), length))
            blocks -= length
        counts.append(count)
        starts.append(start)
        run_counts.append(len(own))
        runs += own
    rows = sorted(draw(st.sets(st.integers(0, sum(counts) - 1))))
    return Batch(
        int32(*counts), int32(*starts), int32(*run_counts), np.array(runs, dtype=np.int32).reshape(-1, 2), int32(*rows)
    )


def built(batch: Batch, step: int = 7) -> tuple[memoryview, frames.Header]:
    """A whole frame with an empty tensor."""
    raw = np.zeros(LIMITS.max_frame_bytes, dtype=np.uint8)
    ints = raw[frames.HEADER_BYTES :][: (len(raw) - frames.HEADER_BYTES) // 4 * 4].view("<i4")
    header = frames.build_step(memoryview(raw), ints, limits=LIMITS, epoch=EPOCH, step=step, batch=batch)
    return memoryview(raw), header


@given(batches(), st.integers(0, 2**64 - 1))
def test_a_frame_is_read_as_it_was_built(batch: Batch, step: int) -> None:
    raw, _ = built(batch, step)
    header = frames.parse_header(raw)
    frames.check_step(header, LIMITS, receiver=1)
    contents = frames.parse_step(raw, header, LIMITS)
    assert (header.epoch, header.step, header.tokens) == (EPOCH, step, batch.tokens)
    for field in ("counts", "starts", "run_counts", "runs", "rows"):
        np.testing.assert_array_equal(getattr(contents.batch, field), getattr(batch, field))
    assert contents.busy.tolist() == [0, 0, 0]
    assert len(contents.tensor) == batch.tokens * LIMITS.row_bytes


@given(batches(), st.integers(0), st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 70))
def test_few_and_many_values_are_judged_alike(batch: Batch, place: int, value: int) -> None:
    _, header = built(batch)
    count = frames.value_count(header)
    ints = np.concatenate(
        [batch.counts, batch.starts, batch.run_counts, batch.runs.reshape(-1), batch.rows, int32(0, 0, 0)]
    ).astype(np.int32)
    ints[place % count] = value
    verdicts = []
    for check in (lambda *a: frames._check_few(ints.tolist(), *a), lambda *a: frames._check_many(ints, *a)):
        try:
            check(header.sequences, header.runs, header.rows, header.tokens, LIMITS)
            verdicts.append(True)
        except FrameError:
            verdicts.append(False)
    assert verdicts[0] == verdicts[1]


def test_the_largest_batch_fits_the_slot() -> None:
    batch = tokens(LIMITS.frame_tokens, wanted=tuple(range(LIMITS.frame_tokens)))
    raw, header = built(batch)
    assert frames.HEADER_BYTES + header.payload_bytes <= len(raw)


def test_the_tensor_lies_at_a_multiple_of_64_bytes() -> None:
    for count in range(40):
        assert frames.tensor_offset(count) % 64 == 0


def test_the_last_stage_sends_the_wanted_rows_only() -> None:
    _, header = built(tokens(5, wanted=(1, 4)))
    returned = frames.with_tensor_rows(header, 2, LIMITS)
    frames.check_step(returned, LIMITS, receiver=0)
    with pytest.raises(FrameError, match="tensor has 2 rows, must have 5"):
        frames.check_step(returned, LIMITS, receiver=1)


def test_a_close_message_keeps_the_reason_and_the_epoch_that_holds() -> None:
    close_reason = Close(
        code="superseded", member="stage 2 (cpu)", message="epoch 9 replaces 8", seen_counter=9, seen_id=b"x" * 8
    )
    assert parse_close(close_reason.pack()) == close_reason
