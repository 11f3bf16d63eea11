"""A bounded, seeded run of the frame fuzzer, started from good frames; longer runs are started by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from languagepipes_node.model.batch import Batch
from languagepipes_node.wire.close import Close
from languagepipes_node.wire.frame import HEADER_BYTES, FrameLimits, Kind, build_step, control_frame
from languagepipes_node.wire.hello import new_hello, own_entry
from languagepipes_node.wire.ring import NO_EPOCH, Epoch, Ring
from support.bounded_run import survives
from support.paths import ROOT
from support.wire_ring import identity, make_plan, one_token, tokens

TARGET = ROOT / "tests" / "fuzz" / "fuzz_frames.py"
PLAN = make_plan()
LIMITS = FrameLimits.from_plan(PLAN)
EPOCH = Epoch(1, b"abcdefgh")


def frame(batch: Batch) -> bytes:
    raw = np.zeros(LIMITS.max_frame_bytes, dtype=np.uint8)
    ints = raw[HEADER_BYTES:][: (len(raw) - HEADER_BYTES) // 4 * 4].view("<i4")
    header = build_step(memoryview(raw), ints, limits=LIMITS, epoch=EPOCH, step=1, batch=batch)
    return raw[: HEADER_BYTES + header.payload_bytes].tobytes()


def test_no_bytes_crash_the_frame_reader(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    hello = new_hello(PLAN, identity(0), EPOCH).with_entry(
        own_entry(Ring(identity(0), PLAN), kv_id=b"k" * 8, seen=NO_EPOCH)
    )
    close_reason = Close(code="silence", member="stage 1 (s1)", message="no bytes from end-model for 1.0 s")
    plan_hash = bytes.fromhex(PLAN.hash)
    seeds = {
        "one": frame(one_token(position=40, block=3)),
        "chunk": frame(tokens(20, wanted=(3, 19))),
        "hello": control_frame(Kind.HELLO, plan_hash, EPOCH, hello.pack()),
        "close": control_frame(Kind.CLOSE, plan_hash, EPOCH, close_reason.pack()),
        "heartbeat": control_frame(Kind.HEARTBEAT, plan_hash, EPOCH),
    }
    for name, content in seeds.items():
        (corpus / name).write_bytes(content)
    survives(TARGET, corpus, most_bytes=4096)
