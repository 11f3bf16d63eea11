"""Fuzz what a member reads before it trusts anyone: any bytes end in a frame within the plan's limits, a hello, a
close message or a WireError, and nothing else.

python tests/fuzz/fuzz_frames.py [-runs=N] [-seed=N] [CORPUS_DIR]   (libFuzzer's options)
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["languagepipes_node.wire"]):
    from languagepipes_node.wire.epochs import validate_hello
    from languagepipes_node.wire.errors import WireError
    from languagepipes_node.wire.frame import HEADER_BYTES, FrameLimits, Kind, check_step, parse_header, parse_step
    from languagepipes_node.wire.hello import parse_close, parse_hello
    from languagepipes_node.wire.ring import NO_EPOCH, Ring

from support.wire_ring import identity, make_plan

PLAN = make_plan()
LIMITS = FrameLimits.from_plan(PLAN)
RING = Ring(identity(1), PLAN)


def read_any(data: bytes) -> None:
    """Read the bytes as a receiving member does."""
    try:
        header = parse_header(data)
        body = data[HEADER_BYTES:]
        if header.kind == Kind.HELLO:
            validate_hello(RING, parse_hello(body), NO_EPOCH)
        elif header.kind == Kind.CLOSE:
            str(parse_close(body))
        elif header.kind == Kind.STEP:
            read_step(data)
    except WireError:
        pass


def read_step(data: bytes) -> None:
    """A step that passes must keep every promise that the layers rely on."""
    header = parse_header(data)
    check_step(header, LIMITS, receiver=1)
    size = HEADER_BYTES + header.payload_bytes
    if size > LIMITS.max_frame_bytes:
        raise AssertionError(f"{size} bytes pass, a slot has {LIMITS.max_frame_bytes}")
    frame = memoryview(data.ljust(size, b"\0"))[:size]
    batch, busy, tensor = parse_step(frame, header, LIMITS)
    ends = batch.starts + batch.counts
    if batch.tokens != header.tokens or len(tensor) != header.tokens * LIMITS.row_bytes or len(busy) != LIMITS.stages:
        raise AssertionError("sizes disagree")
    if ends.min() < 1 or ends.max() > LIMITS.max_context or batch.starts.min() < 0:
        raise AssertionError("a position lies outside the context")
    run = 0
    for sequence, count in enumerate(batch.run_counts.tolist()):
        blocks = [block for first, length in batch.runs[run : run + count].tolist()
                  for block in range(first, first + length)]  # fmt: skip
        run += count
        if min(blocks) < 0 or max(blocks) >= LIMITS.kv_blocks:
            raise AssertionError("a block lies outside the cache")
        if len(blocks) != -(-int(ends[sequence]) // LIMITS.block_tokens):
            raise AssertionError("the blocks do not cover the sequence exactly")
    rows = batch.rows.tolist()
    if run != len(batch.runs) or rows != sorted(set(rows)) or any(not 0 <= row < header.tokens for row in rows):
        raise AssertionError("runs or rows are wrong")


def main() -> None:
    atheris.Setup(sys.argv, read_any)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
