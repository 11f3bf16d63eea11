"""Frames: a fixed little-endian header, int32 arrays, a tensor's raw bytes. docs/protocol.md has the table.

Nothing that is read is trusted: the header is checked against the plan's `FrameLimits` before a byte of the payload is
read, and every value of the arrays before it is used. Nothing is allocated here: frames are read into and
built in buffers that exist already. It knows neither sockets nor which epoch holds.

    offset  0   header, HEADER_BYTES
           72   counts [S], starts [S], run_counts [S], runs [U, 2], rows [R], busy microseconds [stages]:
           int32
                zeros up to a multiple of 64
            …   tensor [tensor_rows, hidden_size]
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from languagepipes_api.names import WIRE_VERSION
from languagepipes_api.plan import DTYPE_BYTES, Plan

from languagepipes_node.model.batch import Batch
from languagepipes_node.wire.errors import FrameError, VersionError
from languagepipes_node.wire.hello import MAX_MESSAGE_BYTES
from languagepipes_node.wire.ring import Epoch

Int32: TypeAlias = npt.NDArray[np.int32]

MAGIC = b"LPWF"
# magic, wire version, kind, dtype, plan hash, epoch counter, epoch id, step,
# tokens, hidden size, sequences, runs, rows wanted, tensor rows, stages, last member that computes, payload
# bytes
_HEADER = struct.Struct("<4sHBB8sQ8sQIIIIIIHHI")
HEADER_BYTES = _HEADER.size
_ALIGNMENT = 64
# Up to so many int32 a plain loop over Python ints beats a dozen numpy calls.
_FEW_VALUES = 192

DTYPE_CODES: dict[str, int] = {"float32": 1, "bfloat16": 2, "float16": 3}


class Kind(IntEnum):
    """What a frame is.

    A replay is a step that writes the KV of members 1 to `last_member` again and asks for no row: members after that
    pass it on without its tensor, so that it returns as every frame does.
    """

    HELLO = 1
    STEP = 2
    REPLAY = 3
    HEARTBEAT = 4
    CLOSE = 5


class Header(NamedTuple):
    """The fixed part of every frame. Counts are 0 but for steps and replays."""

    magic: bytes
    version: int
    kind: int
    dtype: int
    plan_hash: bytes
    epoch_counter: int
    epoch_id: bytes
    step: int
    tokens: int
    hidden_size: int
    sequences: int
    runs: int
    rows: int
    tensor_rows: int
    stages: int
    last_member: int
    payload_bytes: int

    @property
    def epoch(self) -> Epoch:
        return Epoch(self.epoch_counter, self.epoch_id)


@dataclass(frozen=True)
class FrameLimits:
    """What the plan allows in a frame. return_all_rows: whether all packed tokens return, and not the wanted
    rows alone. A frame holds at most `max_runs` block runs: more would be an attack.
    """

    plan_hash: bytes
    dtype_code: int
    itemsize: int
    hidden_size: int
    frame_tokens: int
    max_context: int
    block_tokens: int
    kv_blocks: int
    stages: int
    frames_in_flight: int
    return_all_rows: bool
    max_sequences: int
    max_runs: int

    @classmethod
    def from_plan(cls, plan: Plan) -> FrameLimits:
        blocks_a_sequence = -(-plan.max_context_length // plan.kv_block_tokens)
        # Each sequence writes to a block that it shares with nobody.
        max_sequences = min(plan.frame_tokens, plan.kv_blocks)
        return cls(
            plan_hash=bytes.fromhex(plan.hash),
            dtype_code=DTYPE_CODES[plan.dtype],
            itemsize=DTYPE_BYTES[plan.dtype],
            hidden_size=plan.hidden_size,
            frame_tokens=plan.frame_tokens,
            max_context=plan.max_context_length,
            block_tokens=plan.kv_block_tokens,
            kv_blocks=plan.kv_blocks,
            stages=len(plan.stages),
            frames_in_flight=plan.frames_in_flight,
            return_all_rows=len(plan.end_model.tail_layers) > 0,
            max_sequences=max_sequences,
            max_runs=min(max_sequences * blocks_a_sequence, max(plan.kv_blocks, 65_536)),
        )

    @property
    def row_bytes(self) -> int:
        return self.hidden_size * self.itemsize

    @property
    def max_frame_bytes(self) -> int:
        """The largest step frame, header included: what a receive slot holds."""
        values = 3 * self.max_sequences + 2 * self.max_runs + self.frame_tokens + self.stages
        return tensor_offset(values) + self.frame_tokens * self.row_bytes

    def returned_rows(self, *, tokens: int, rows: int) -> int:
        """Rows of the tensor that returns for a frame of so many tokens, so many of them wanted."""
        return tokens if self.return_all_rows else rows


class Step(NamedTuple):
    """A step frame's contents: views into the buffer that holds the frame."""

    batch: Batch
    busy: Int32  # [stages]
    tensor: memoryview


def tensor_offset(values: int) -> int:
    """Where the tensor begins, from the frame's start, after so many int32."""
    return -(-(HEADER_BYTES + 4 * values) // _ALIGNMENT) * _ALIGNMENT


def value_count(header: Header) -> int:
    """How many int32 lie between header and tensor."""
    return 3 * header.sequences + 2 * header.runs + header.rows + header.stages


def control_frame(kind: Kind, plan_hash: bytes, epoch: Epoch, body: bytes = b"") -> bytes:
    """A hello, heartbeat or close frame, whole."""
    head = _HEADER.pack(
        MAGIC, WIRE_VERSION, kind, 0, plan_hash, epoch.counter, epoch.id, 0, 0, 0, 0, 0, 0, 0, 0, 0, len(body)
    )
    return head + body


def parse_header(data: bytes | bytearray | memoryview) -> Header:
    """The first HEADER_BYTES of a frame. Raises FrameError for what no frame of any ring can be, VersionError
    for another wire version. A step's counts are checked by `check_step`.
    """
    if len(data) < HEADER_BYTES:
        raise FrameError(f"frame header has {len(data)} bytes, must have {HEADER_BYTES}")
    header = Header._make(_HEADER.unpack_from(data))
    if header.magic != MAGIC:
        raise FrameError(f"frame begins with {header.magic.hex()}, must begin with {MAGIC.hex()}")
    if header.version != WIRE_VERSION:
        raise VersionError(f"wire version {header.version} is not {WIRE_VERSION}: run the same image at both ends")
    kind = header.kind
    if kind in (Kind.STEP, Kind.REPLAY):
        return header
    if kind not in (Kind.HEARTBEAT, Kind.HELLO, Kind.CLOSE):
        raise FrameError(f"frame kind {kind} is unknown")
    limit = 0 if kind == Kind.HEARTBEAT else MAX_MESSAGE_BYTES
    if header.payload_bytes > limit:
        raise FrameError(f"{Kind(kind).name.lower()} frame has {header.payload_bytes} payload bytes, at most {limit}")
    if header.dtype or header.step or any(header[8:16]):
        raise FrameError(f"{Kind(kind).name.lower()} frame has a step's counts, must have zeros")
    return header


def tensor_rows(header: Header, limits: FrameLimits, *, receiver: int) -> int:
    """Rows of a step's or replay's tensor on its way to the member at place `receiver` (0: the End Model)."""
    if header.kind == Kind.REPLAY:
        return header.tokens if 0 < receiver <= header.last_member else 0
    return header.tokens if receiver else limits.returned_rows(tokens=header.tokens, rows=header.rows)


def check_step(header: Header, limits: FrameLimits, *, receiver: int) -> None:
    """Check the header of a step or a replay before its payload is read. receiver: who gets it, 0 for the End Model.

    Raises FrameError naming field, value and limit.
    """
    if header.plan_hash != limits.plan_hash:
        raise FrameError(f"frame's plan hash {header.plan_hash.hex()} is not {limits.plan_hash.hex()}")
    if header.dtype != limits.dtype_code:
        raise FrameError(f"frame's dtype code {header.dtype} is not the plan's {limits.dtype_code}")
    if header.hidden_size != limits.hidden_size:
        raise FrameError(f"frame's hidden size {header.hidden_size} is not the plan's {limits.hidden_size}")
    if header.stages != limits.stages or (header.kind == Kind.STEP and header.last_member != limits.stages):
        raise FrameError(
            f"frame has {header.stages} stages and computes up to member {header.last_member}, "
            f"the plan has {limits.stages} stages"
        )
    if header.kind == Kind.REPLAY and not 1 <= header.last_member < limits.stages:
        raise FrameError(
            f"replay frame computes up to member {header.last_member}, must be one from 1 to {limits.stages - 1}: "
            "what all compute is a step"
        )
    if header.kind == Kind.REPLAY and header.rows:
        raise FrameError(f"replay frame wants {header.rows} rows, must want none")
    tokens = header.tokens
    if not 1 <= tokens <= limits.frame_tokens:
        raise FrameError(f"frame has {tokens} tokens, must have 1 to {limits.frame_tokens}")
    if not 1 <= header.sequences <= min(tokens, limits.max_sequences):
        raise FrameError(f"frame has {header.sequences} sequences, must have 1 to {min(tokens, limits.max_sequences)}")
    if not header.sequences <= header.runs <= limits.max_runs:
        raise FrameError(f"frame has {header.runs} block runs, must have {header.sequences} to {limits.max_runs}")
    if header.rows > tokens:
        raise FrameError(f"frame wants {header.rows} rows of {tokens} tokens")
    expected = tensor_rows(header, limits, receiver=receiver)
    if header.tensor_rows != expected:
        raise FrameError(f"frame's tensor has {header.tensor_rows} rows, must have {expected}")
    payload = tensor_offset(value_count(header)) - HEADER_BYTES + expected * limits.row_bytes
    if header.payload_bytes != payload:
        raise FrameError(f"frame has {header.payload_bytes} payload bytes, its counts make {payload}")


def parse_step(frame: memoryview, header: Header, limits: FrameLimits) -> Step:
    """A step whose header passed `check_step`; `frame` holds all of it. Raises FrameError if any value is out
    of its bounds: block ids, positions, runs that do not cover exactly, rows that do not ascend.
    """
    values = value_count(header)
    offset = tensor_offset(values)
    ints: Int32 = np.frombuffer(frame, dtype="<i4", count=values, offset=HEADER_BYTES)
    padding = HEADER_BYTES + 4 * values
    if padding != offset and any(frame[padding:offset]):
        raise FrameError("frame's padding is not zero")
    step = Step(
        *_views(ints, header.sequences, header.runs, header.rows),
        frame[offset : HEADER_BYTES + header.payload_bytes],
    )
    check_values(
        ints,
        sequences=header.sequences,
        runs=header.runs,
        rows=header.rows,
        tokens=header.tokens,
        limits=limits,
    )
    return step


def build_step(
    frame: memoryview,
    ints: Int32,
    *,
    limits: FrameLimits,
    epoch: Epoch,
    step: int,
    batch: Batch,
    last_member: int | None = None,
) -> Header:
    """Write header and arrays of an outgoing step into `frame` (writable, at least limits.max_frame_bytes),
    whose int32 after the header `ints` views. The caller puts the tensor behind them, at `tensor_offset`.

    last_member: the last stage that computes; below the plan's stages the frame is a replay.

    Raises FrameError, as the receiving side would, if the batch breaks the plan's limits.
    """
    sequences, runs, rows = len(batch.counts), len(batch.runs), len(batch.rows)
    if len(batch.starts) != sequences or len(batch.run_counts) != sequences:
        raise FrameError(
            f"batch has {sequences} counts, {len(batch.starts)} starts and {len(batch.run_counts)} run counts"
        )
    tokens = batch.tokens
    values = 3 * sequences + 2 * runs + rows + limits.stages
    offset = tensor_offset(values)
    payload = offset - HEADER_BYTES + tokens * limits.row_bytes
    last = limits.stages if last_member is None else last_member
    header = Header(
        MAGIC, WIRE_VERSION, Kind.STEP if last == limits.stages else Kind.REPLAY, limits.dtype_code,
        limits.plan_hash, epoch.counter, epoch.id, step,
        max(tokens, 0), limits.hidden_size, sequences, runs, rows, max(tokens, 0), limits.stages, last,
        max(payload, 0),
    )  # fmt: skip
    check_step(header, limits, receiver=1)
    place = 0
    for array in (batch.counts, batch.starts, batch.run_counts, batch.runs.reshape(-1), batch.rows):
        ints[place : place + len(array)] = array
        place += len(array)
    ints[place : place + limits.stages] = 0
    check_values(ints[:values], sequences=sequences, runs=runs, rows=rows, tokens=tokens, limits=limits)
    _HEADER.pack_into(frame, 0, *header)
    padding = HEADER_BYTES + 4 * values
    frame[padding:offset] = bytes(offset - padding)
    return header


def with_tensor_rows(header: Header, rows: int, limits: FrameLimits) -> Header:
    """The header of the same frame with another number of tensor rows, as it leaves the last member that computes."""
    payload = tensor_offset(value_count(header)) - HEADER_BYTES + rows * limits.row_bytes
    return header._replace(tensor_rows=rows, payload_bytes=payload)


def write_header(frame: memoryview, header: Header) -> None:
    _HEADER.pack_into(frame, 0, *header)


def _views(ints: Int32, sequences: int, runs: int, rows: int) -> tuple[Batch, Int32]:
    run_place = 3 * sequences
    row_place = run_place + 2 * runs
    batch = Batch(
        counts=ints[:sequences],
        starts=ints[sequences : 2 * sequences],
        run_counts=ints[2 * sequences : run_place],
        runs=ints[run_place:row_place].reshape(-1, 2),
        rows=ints[row_place : row_place + rows],
    )
    return batch, ints[row_place + rows :]


def check_values(ints: Int32, *, sequences: int, runs: int, rows: int, tokens: int, limits: FrameLimits) -> None:
    """Check every int32 of a frame. Raises FrameError naming the sequence, the value and the limit."""
    if len(ints) <= _FEW_VALUES:
        _check_few(ints.tolist(), sequences, runs, rows, tokens, limits)
    else:
        _check_many(ints, sequences, runs, rows, tokens, limits)


def _check_few(values: Sequence[int], sequences: int, runs: int, rows: int, tokens: int, limits: FrameLimits) -> None:
    run_place = 3 * sequences
    row_place = run_place + 2 * runs
    place, total = run_place, 0
    for sequence in range(sequences):
        count, start, run_count = (
            values[sequence],
            values[sequences + sequence],
            values[2 * sequences + sequence],
        )
        _check_sequence(sequence, count, start, run_count, limits)
        total += count
        if place + 2 * run_count > row_place:
            raise FrameError(f"run counts exceed the frame's {runs} block runs at sequence {sequence}")
        covered = 0
        for run in range(place, place + 2 * run_count, 2):
            first, length = values[run], values[run + 1]
            if not (0 <= first < limits.kv_blocks and 1 <= length <= limits.kv_blocks - first):
                raise _bad_run(sequence, first, length, limits)
            covered += length
        place += 2 * run_count
        _check_cover(sequence, count, start, covered, limits)
    if place != row_place:
        raise FrameError(f"run counts make {(place - run_place) // 2} block runs, the frame has {runs}")
    if total != tokens:
        raise FrameError(f"token counts make {total}, the frame has {tokens} tokens")
    last = -1
    for place in range(row_place, row_place + rows):
        if not last < values[place] < tokens:
            raise _bad_row(values[place], last, tokens)
        last = values[place]
    for busy in values[row_place + rows :]:
        if busy < 0:
            raise FrameError(f"busy time of {busy} microseconds")


def _check_many(ints: Int32, sequences: int, runs: int, rows: int, tokens: int, limits: FrameLimits) -> None:
    batch, busy = _views(ints, sequences, runs, rows)
    counts, starts, run_counts = (array.astype(np.int64) for array in (batch.counts, batch.starts, batch.run_counts))
    firsts, lengths = batch.runs[:, 0].astype(np.int64), batch.runs[:, 1].astype(np.int64)
    context = limits.max_context
    wrong = (counts < 1) | (starts < 0) | (starts + counts > context) | (run_counts < 1) | (run_counts > runs)
    for sequence in np.flatnonzero(wrong)[:1].tolist():
        _check_sequence(sequence, int(counts[sequence]), int(starts[sequence]), int(run_counts[sequence]), limits)
        raise FrameError(f"run counts exceed the frame's {runs} block runs at sequence {sequence}")
    if (total := int(counts.sum())) != tokens:
        raise FrameError(f"token counts make {total}, the frame has {tokens} tokens")
    if (total := int(run_counts.sum())) != runs:
        raise FrameError(f"run counts make {total} block runs, the frame has {runs}")
    ends = np.cumsum(run_counts)
    wrong = (firsts < 0) | (lengths < 1) | (firsts + lengths > limits.kv_blocks)
    for run in np.flatnonzero(wrong)[:1].tolist():
        raise _bad_run(int(np.searchsorted(ends, run, side="right")), int(firsts[run]), int(lengths[run]), limits)
    covered = np.add.reduceat(lengths, ends - run_counts)
    for sequence in np.flatnonzero(covered != -(-(starts + counts) // limits.block_tokens))[:1].tolist():
        _check_cover(sequence, int(counts[sequence]), int(starts[sequence]), int(covered[sequence]), limits)
    steps = np.diff(batch.rows.astype(np.int64), prepend=-1)
    for place in np.flatnonzero((steps < 1) | (batch.rows >= tokens))[:1].tolist():
        raise _bad_row(int(batch.rows[place]), int(batch.rows[place - 1]) if place else -1, tokens)
    if busy.size and int(busy.min()) < 0:
        raise FrameError(f"busy time of {int(busy.min())} microseconds")


def _check_sequence(sequence: int, count: int, start: int, run_count: int, limits: FrameLimits) -> None:
    if count < 1:
        raise FrameError(f"sequence {sequence} has {count} tokens, must have at least 1")
    if start < 0 or start + count > limits.max_context:
        raise FrameError(
            f"sequence {sequence}: {count} tokens from position {start} lie outside 0 to {limits.max_context}"
        )
    if run_count < 1:
        raise FrameError(f"sequence {sequence} has {run_count} block runs, must have at least 1")


def _check_cover(sequence: int, count: int, start: int, covered: int, limits: FrameLimits) -> None:
    needed = -(-(start + count) // limits.block_tokens)
    if covered != needed:
        raise FrameError(f"sequence {sequence} names {covered} blocks, its {start + count} positions take {needed}")


def _bad_run(sequence: int, first: int, length: int, limits: FrameLimits) -> FrameError:
    return FrameError(
        f"sequence {sequence}: run of {length} blocks from block {first} lies outside 0 to {limits.kv_blocks}"
    )


def _bad_row(row: int, last: int, tokens: int) -> FrameError:
    return FrameError(f"wanted row {row} after row {last}: rows must ascend and be below {tokens}")
