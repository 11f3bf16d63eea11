"""Wire version 1, byte for byte. A change here is another wire version: members of both would share no ring."""

from __future__ import annotations

import msgpack
import numpy as np
from languagepipes_api.names import WIRE_VERSION
from languagepipes_node.model.batch import Batch
from languagepipes_node.wire import frame as frames
from languagepipes_node.wire.close import Close
from languagepipes_node.wire.frame import FrameLimits, Kind
from languagepipes_node.wire.hello import Entry, Hello, parse_close, parse_hello
from languagepipes_node.wire.ring import Epoch
from support.wire_ring import int32

PLAN_HASH = bytes(range(8))
EPOCH = Epoch(3, b"abcdefgh")
LIMITS = FrameLimits(
    plan_hash=PLAN_HASH, dtype_code=2, itemsize=2, hidden_size=4, frame_tokens=8, max_context=64, block_tokens=16,
    kv_blocks=8, stages=2, frames_in_flight=2, return_all_rows=False, max_sequences=8, max_runs=32,
)  # fmt: skip
STEP_HEADER = (
    "4c505746 0100 02 02 0001020304050607 0300000000000000 6162636465666768 0700000000000000"
    "03000000 04000000 02000000 03000000 02000000 03000000 0200 0200 90000000"
)
STEP_ARRAYS = (
    "02000000 01000000  00000000 10000000  01000000 02000000  00000000 01000000 02000000 01000000 04000000 01000000"
    "01000000 02000000  00000000 00000000"
)
CLOSE_FRAME = "4c505746 0100 05 00 0001020304050607 0300000000000000 6162636465666768" + 36 * "00" + "03000000 78797a"
CLOSE = {
    "code": "superseded",
    "station": "stage 1 (a)",
    "message": "m",
    "seen_counter": 9,
    "seen_id": b"xxxxxxxx",
}
HELLO = {
    "wire": 1,
    "plan": "0001020304050607",
    "namespace": "ns",
    "pipe": "p",
    "chain": 5,
    "counter": 3,
    "id": b"abcdefgh",
    "stages": [[1, 3]],
    "entries": [
        {
            "index": 0,
            "name": "end-model",
            "layers": [0, 1, 3, 3],
            "dtype": "bfloat16",
            "kv_id": b"kvkvkvkv",
            "kv_blocks": 8,
            "seen": 2,
        }
    ],
}


def test_the_version_is_1() -> None:
    assert WIRE_VERSION == 1


def test_a_step_frame() -> None:
    raw = np.zeros(LIMITS.max_frame_bytes, dtype=np.uint8)
    ints = raw[frames.HEADER_BYTES :][: (len(raw) - frames.HEADER_BYTES) // 4 * 4].view("<i4")
    batch = Batch(int32(2, 1), int32(0, 16), int32(1, 2), int32(0, 1, 2, 1, 4, 1).reshape(-1, 2), int32(1, 2))
    header = frames.build_step(memoryview(raw), ints, limits=LIMITS, epoch=EPOCH, step=7, batch=batch)
    expected = bytes.fromhex(STEP_HEADER + STEP_ARRAYS)
    begin = frames.tensor_offset(frames.value_count(header))
    assert bytes(raw[:begin]) == expected.ljust(begin, b"\0")
    assert begin == 192


def test_a_control_frame() -> None:
    assert frames.control_frame(Kind.CLOSE, PLAN_HASH, EPOCH, b"xyz") == bytes.fromhex(CLOSE_FRAME)


def test_a_close_message() -> None:
    message = Close(code="superseded", member="stage 1 (a)", message="m", seen_counter=9, seen_id=b"x" * 8)
    assert message.pack() == msgpack.packb(CLOSE)
    assert parse_close(msgpack.packb(CLOSE)) == message


def test_a_hello_message() -> None:
    entry = Entry(
        index=0, name="end-model", layers=[0, 1, 3, 3], dtype="bfloat16", kv_id=b"kvkvkvkv", kv_blocks=8, seen=2
    )
    message = Hello(
        wire=1, plan="0001020304050607", namespace="ns", pipe="p", replica=5, counter=3, id=b"abcdefgh",
        stages=[[1, 3]], entries=[entry],
    )  # fmt: skip
    assert message.pack() == msgpack.packb(HELLO)
    assert parse_hello(msgpack.packb(HELLO)) == message


def test_a_close_message_that_names_a_step() -> None:
    message = Close(code="step_failed", member="stage 1 (a)", message="m", step=7)
    fields = {**CLOSE, "code": "step_failed", "seen_counter": 0, "seen_id": bytes(8), "step": 7}
    assert message.pack() == msgpack.packb(fields)
    assert parse_close(msgpack.packb(fields)) == message
