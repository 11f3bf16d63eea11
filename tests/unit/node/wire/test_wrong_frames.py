"""Frames and hellos that are wrong, each with the error that it gets. None of them touches a block."""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgpack
import numpy as np
import pytest
from languagepipes_api.names import WIRE_VERSION
from languagepipes_node.model.batch import Batch
from languagepipes_node.wire import frame as frames
from languagepipes_node.wire.epochs import validate_hello
from languagepipes_node.wire.errors import FrameError, HelloError, VersionError
from languagepipes_node.wire.frame import FrameLimits, Header
from languagepipes_node.wire.hello import MAX_MESSAGE_BYTES, Hello, new_hello, own_entry, parse_close, parse_hello
from languagepipes_node.wire.ring import NO_EPOCH, Epoch, Ring
from support.wire_ring import identity, int32, make_plan, tokens

PLAN = make_plan()
LIMITS = FrameLimits.from_plan(PLAN)
BATCH = Batch(int32(3, 2), int32(0, 30), int32(1, 2), int32(0, 1, 4, 1, 9, 1).reshape(3, 2), int32(2, 4))


def raw_frame() -> tuple[np.ndarray, Header]:
    raw = np.zeros(LIMITS.max_frame_bytes, dtype=np.uint8)
    ints = raw[frames.HEADER_BYTES :][: (len(raw) - frames.HEADER_BYTES) // 4 * 4].view("<i4")
    header = frames.build_step(memoryview(raw), ints, limits=LIMITS, epoch=Epoch(1, b"abcdefgh"), step=1, batch=BATCH)
    return raw, header


def read(raw: np.ndarray) -> None:
    """As the receiving side does."""
    header = frames.parse_header(memoryview(raw))
    frames.check_step(header, LIMITS, receiver=1)
    frames.parse_step(memoryview(raw), header, LIMITS)


WRONG_HEADERS: list[tuple[dict[str, object], str]] = [
    ({"magic": b"HTTP"}, "frame begins with 48545450, must begin with 4c505746"),
    ({"version": 9}, f"wire version 9 is not {WIRE_VERSION}: run the same image at both ends"),
    ({"kind": 3}, "replay frame computes up to member 3, must be one from 1 to 2: what all compute is a step"),
    (
        {"kind": 3, "last_member": 0},
        "replay frame computes up to member 0, must be one from 1 to 2: what all compute is a step",
    ),
    ({"kind": 3, "last_member": 2}, "replay frame wants 2 rows, must want none"),
    ({"kind": 77}, "frame kind 77 is unknown"),
    ({"kind": 4}, "heartbeat frame has 280 payload bytes, at most 0"),
    ({"kind": 4, "payload_bytes": 0}, "heartbeat frame has a step's counts, must have zeros"),
    ({"kind": 1, "payload_bytes": 40_000}, "hello frame has 40000 payload bytes, at most 32768"),
    ({"dtype": 2}, "frame's dtype code 2 is not the plan's 1"),
    ({"plan_hash": b"\0" * 8}, f"frame's plan hash 0000000000000000 is not {PLAN.hash}"),
    ({"tokens": 0}, "frame has 0 tokens, must have 1 to 64"),
    ({"tokens": 65}, "frame has 65 tokens, must have 1 to 64"),
    ({"tokens": 2**32 - 1}, "frame has 4294967295 tokens, must have 1 to 64"),
    ({"hidden_size": 4096}, "frame's hidden size 4096 is not the plan's 8"),
    ({"sequences": 0}, "frame has 0 sequences, must have 1 to 5"),
    ({"sequences": 6}, "frame has 6 sequences, must have 1 to 5"),
    ({"runs": 1}, "frame has 1 block runs, must have 2 to 512"),
    ({"runs": 2**31}, "frame has 2147483648 block runs, must have 2 to 512"),
    ({"rows": 6}, "frame wants 6 rows of 5 tokens"),
    ({"tensor_rows": 2}, "frame's tensor has 2 rows, must have 5"),
    ({"stages": 2}, "frame has 2 stages and computes up to member 3, the plan has 3 stages"),
    ({"last_member": 1}, "frame has 3 stages and computes up to member 1, the plan has 3 stages"),
    ({"payload_bytes": 2**32 - 1}, "frame has 4294967295 payload bytes, its counts make 280"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_HEADERS)
def test_a_wrong_header_is_refused_before_its_payload_is_read(change: dict[str, object], message: str) -> None:
    raw, header = raw_frame()
    frames.write_header(memoryview(raw), header._replace(**change))
    with pytest.raises(FrameError) as raised:
        read(raw)
    assert str(raised.value) == message


# Places of the int32 in BATCH's frame: counts 0-1, starts 2-3, run counts 4-5, runs 6-11, rows 12-13, busy 14-16.
WRONG_VALUES: list[tuple[dict[int, int], str]] = [
    ({0: 0, 1: 5}, "sequence 0 has 0 tokens, must have at least 1"),
    ({0: -1, 1: 6}, "sequence 0 has -1 tokens, must have at least 1"),
    ({0: 4}, "token counts make 6, the frame has 5 tokens"),
    ({2: -1}, "sequence 0: 3 tokens from position -1 lie outside 0 to 256"),
    ({3: 255}, "sequence 1: 2 tokens from position 255 lie outside 0 to 256"),
    ({3: 2**31 - 1}, "sequence 1: 2 tokens from position 2147483647 lie outside 0 to 256"),
    ({4: 0, 5: 3}, "sequence 0 has 0 block runs, must have at least 1"),
    ({5: 3}, "run counts exceed the frame's 3 block runs at sequence 1"),
    ({4: 2**31 - 1}, "run counts exceed the frame's 3 block runs at sequence 0"),
    ({5: 1, 9: 2}, "run counts make 2 block runs, the frame has 3"),
    ({6: -1}, "sequence 0: run of 1 blocks from block -1 lies outside 0 to 32"),
    ({6: 32}, "sequence 0: run of 1 blocks from block 32 lies outside 0 to 32"),
    ({10: 31, 11: 2}, "sequence 1: run of 2 blocks from block 31 lies outside 0 to 32"),
    ({10: 2**31 - 1, 11: 2**31 - 1}, "sequence 1: run of 2147483647 blocks from block 2147483647 lies outside 0 to 32"),
    ({7: 0}, "sequence 0: run of 0 blocks from block 0 lies outside 0 to 32"),
    ({7: 2}, "sequence 0 names 2 blocks, its 3 positions take 1"),
    ({3: 1}, "sequence 1 names 2 blocks, its 3 positions take 1"),
    ({12: 4}, "wanted row 4 after row 4: rows must ascend and be below 5"),
    ({12: -1}, "wanted row -1 after row -1: rows must ascend and be below 5"),
    ({13: 5}, "wanted row 5 after row 2: rows must ascend and be below 5"),
    ({14: -7}, "busy time of -7 microseconds"),
    ({17: 1}, "frame's padding is not zero"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG_VALUES)
@pytest.mark.parametrize("many", [False, True])
def test_a_wrong_value_is_refused_before_anyone_uses_it(
    change: dict[int, int], message: str, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if many:  # the same through the vectorised check
        monkeypatch.setattr(frames, "_FEW_VALUES", 0)
    raw, _ = raw_frame()
    for place, value in change.items():
        struct.pack_into("<i", raw, frames.HEADER_BYTES + 4 * place, value)
    with pytest.raises(FrameError) as raised:
        read(raw)
    if not many or "run counts" not in message:  # which of two wrong things is named first may differ
        assert str(raised.value) == message


@pytest.mark.parametrize("cut", [0, 1, 71])
def test_a_header_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(FrameError, match=f"frame header has {cut} bytes, must have 72"):
        frames.parse_header(bytes(cut))


WRONG_BATCHES: list[tuple[Batch, str]] = [
    (tokens(65), "frame has 65 tokens, must have 1 to 64"),
    (Batch(int32(), int32(), int32(), int32().reshape(0, 2), int32()), "frame has 0 tokens, must have 1 to 64"),
    (Batch(int32(1), int32(), int32(1), int32(0, 1).reshape(1, 2), int32()),
     "batch has 1 counts, 0 starts and 1 run counts"),
    (Batch(int32(1), int32(0), int32(1), int32(40, 1).reshape(1, 2), int32()),
     "sequence 0: run of 1 blocks from block 40 lies outside 0 to 32"),
]  # fmt: skip


@pytest.mark.parametrize(("batch", "message"), WRONG_BATCHES)
def test_a_wrong_batch_is_refused_where_it_is_sent(batch: Batch, message: str) -> None:
    raw = np.zeros(LIMITS.max_frame_bytes, dtype=np.uint8)
    ints = raw[frames.HEADER_BYTES :][: (len(raw) - frames.HEADER_BYTES) // 4 * 4].view("<i4")
    with pytest.raises(FrameError) as raised:
        frames.build_step(memoryview(raw), ints, limits=LIMITS, epoch=Epoch(1, b"abcdefgh"), step=1, batch=batch)
    assert str(raised.value) == message


def good_hello() -> Hello:
    """What stage 1 gets."""
    ring = Ring(identity(0), PLAN)
    entry = own_entry(ring, kv_id=b"kkkkkkkk", seen=NO_EPOCH)
    return new_hello(PLAN, identity(0), Epoch(5, b"abcdefgh")).with_entry(entry)


def changed_hello(change: Callable[[dict[str, object]], object]) -> bytes:
    fields = msgpack.unpackb(good_hello().pack())
    change(fields)
    packed: bytes = msgpack.packb(fields)
    return packed


WRONG_HELLOS: list[tuple[bytes, str]] = [
    (b"", "hello is not msgpack within its bounds: Unpack failed: incomplete input"),
    (b"\x80\x04\x95K\x01.", "hello is not msgpack within its bounds: unpack(b) received extra data."),
    (good_hello().pack()[:-3], "hello is not msgpack within its bounds: Unpack failed: incomplete input"),
    (b"\xc4\x04abcd", "hello: field hello: Input should be a valid dictionary or instance of Hello"),
    (b"\xdd\x7f\xff\xff\xff", "hello is not msgpack within its bounds: 2147483647 exceeds max_array_len(65)"),
    (b"\xc7\x08\x05abcdefgh", "hello is not msgpack within its bounds: 9 exceeds max_ext_len(0)"),
    (bytes(MAX_MESSAGE_BYTES + 1), "hello has 32769 bytes, at most 32768 are read"),
    (changed_hello(lambda hello: hello.pop("plan")), "hello: field plan: Field required"),
    (changed_hello(lambda hello: hello.update(extra=1)), "hello: field extra: Extra inputs are not permitted"),
    (changed_hello(lambda hello: hello.update(counter=0)),
     "hello: field counter: Input should be greater than or equal to 1"),
    (changed_hello(lambda hello: hello.update(counter="7")), "hello: field counter: Input should be a valid integer"),
    (changed_hello(lambda hello: hello.update(plan="../../etc")),
     "hello: field plan: String should match pattern '^[0-9a-f]{16}$'"),
    (changed_hello(lambda hello: hello.update(id=b"short")),
     "hello: field id: Data should have at least 8 bytes"),
    (changed_hello(lambda hello: hello.update(entries=[])),
     "hello: field entries: List should have at least 1 item after validation, not 0"),
    (changed_hello(lambda hello: hello["entries"][0].update(dtype="int8")),
     "hello: field entries.0.dtype: Input should be 'float32', 'bfloat16' or 'float16'"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), WRONG_HELLOS)
def test_a_hello_that_cannot_be_read_is_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(HelloError) as raised:
        parse_hello(data)
    assert str(raised.value) == message


def test_a_close_with_an_unknown_code_is_refused() -> None:
    data = msgpack.packb({"code": "exec", "station": "s", "message": "m", "seen_counter": 0, "seen_id": bytes(8)})
    with pytest.raises(HelloError, match="close: field code: Input should be 'wire_version', "):
        parse_close(data)


def entry_with(**change: object) -> Hello:
    hello = good_hello()
    return hello.model_copy(update={"entries": [hello.entries[0].model_copy(update=change)]})


DISAGREEING: list[tuple[Hello, str, str]] = [
    (good_hello().model_copy(update={"wire": 2}), "wire_version", "wire version 2 is not 1"),
    (good_hello().model_copy(update={"plan": "5f" * 8}), "plan_hash", f"plan hash 5f5f5f5f5f5f5f5f is not {PLAN.hash}"),
    (good_hello().model_copy(update={"pipe": "other"}), "pipe",
     "pipe default/other replica 0 is not default/p replica 0"),
    (good_hello().model_copy(update={"replica": 1}), "pipe", "pipe default/p replica 1 is not default/p replica 0"),
    (good_hello().with_entry(good_hello().entries[0]), "stations", "the hello passed 2 members, 1 come before"),
    (entry_with(index=2), "stations", "member 2 stands in the place of end-model"),
    (entry_with(layers=[0, 2, 4, 4]), "layers",
     "end-model runs layers [0, 2) and [4, 4), not [0, 1) and [4, 4)"),
    (entry_with(dtype="bfloat16"), "dtype", "end-model sends bfloat16, not float32"),
    (entry_with(kv_blocks=31), "kv_blocks", "end-model has 31 KV blocks, the plan has 32"),
    (good_hello().model_copy(update={"counter": 4}), "stale_epoch",
     "epoch 4/6162636465666768 is not above epoch 4/7878787878787878"),
    (good_hello().model_copy(update={"counter": 3}), "stale_epoch",
     "epoch 3/6162636465666768 is not above epoch 4/7878787878787878"),
]  # fmt: skip


@pytest.mark.parametrize(("hello", "code", "message"), DISAGREEING)
def test_a_hello_that_disagrees_is_refused_and_told_in_what(hello: Hello, code: str, message: str) -> None:
    refusal = validate_hello(Ring(identity(1), PLAN), hello, Epoch(4, b"x" * 8))
    assert refusal is not None
    assert (refusal.code, str(refusal)) == (code, f"stage 1 (s1): refused: {message}")
    assert refusal.seen == (Epoch(4, b"x" * 8) if code == "stale_epoch" else NO_EPOCH)


def test_a_hello_that_agrees_and_is_newer_is_accepted() -> None:
    assert validate_hello(Ring(identity(1), PLAN), good_hello(), Epoch(4, b"x" * 8)) is None


def test_another_wire_version_is_an_error_of_its_own() -> None:
    raw, header = raw_frame()
    frames.write_header(memoryview(raw), header._replace(version=2))
    with pytest.raises(VersionError):
        frames.parse_header(memoryview(raw))
