"""Records what a stage receives and sends inside TLS, by wrapping the connections that it really uses."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
from languagepipes_node.net.tls import TlsFiles
from languagepipes_node.wire.tls_transport import TlsTransport

# docs/protocol.md, written out a second time on purpose: the test must not learn the format from the code under test.
HEADER = struct.Struct("<4sHBB8sQ8sQIIIIIIHHI")
HELLO, STEP, HEARTBEAT, CLOSE = 1, 2, 4, 5


@dataclass
class Stream:
    """One direction of one connection."""

    data: bytearray = field(default_factory=bytearray)


class Recorder:
    """`transport` stands in for TlsTransport; `streams` holds every byte that passed, in the clear."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []

    def stream(self) -> Stream:
        self.streams.append(Stream())
        return self.streams[-1]

    def transport(self, files: TlsFiles) -> Any:
        return _Through(TlsTransport(files), self)


class _Through:
    """Passes everything on to the real object, and wraps what listening, accepting and dialling return."""

    def __init__(self, inner: Any, recorder: Recorder) -> None:
        self._inner, self._recorder = inner, recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def listen(self, address: str) -> Any:
        return _Through(self._inner.listen(address), self._recorder)

    def accept(self, timeout_seconds: float | None = None) -> Any:
        arrival = self._inner.accept(timeout_seconds)
        return None if arrival is None else _Through(arrival, self._recorder)

    def establish(self, timeout_seconds: float) -> Any:
        return _Recorded(self._inner.establish(timeout_seconds), self._recorder)

    def dial(self, address: str, timeout_seconds: float) -> Any:
        return _Recorded(self._inner.dial(address, timeout_seconds), self._recorder)


class _Recorded:
    def __init__(self, inner: Any, recorder: Recorder) -> None:
        self._inner = inner
        self._received, self._sent = recorder.stream(), recorder.stream()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def read_into(self, view: memoryview) -> int:
        count: int = self._inner.read_into(view)
        self._received.data += view[:count]
        return count

    def write(self, data: memoryview | bytes) -> None:
        self._sent.data += data
        self._inner.write(data)


@dataclass(frozen=True)
class Recorded:
    """A frame as recorded. arrays: every int32 but the busy times; rows: bytes [tensor_rows, hidden × itemsize]."""

    kind: int
    counts: tuple[int, ...]
    arrays: tuple[int, ...]
    busy: tuple[int, ...]
    rows: tuple[bytes, ...]
    message: Any


def frames(stream: bytes, itemsize: int) -> list[Recorded]:
    """Account for every byte of a stream. AssertionError if a byte is in no field that the format names."""
    found, at = [], 0
    while at < len(stream):
        header = HEADER.unpack_from(stream, at)
        magic, _version, kind, *_rest = header
        tokens, hidden, sequences, runs, rows, tensor_rows, stages, last, payload_bytes = header[8:]
        assert magic == b"LPWF"
        payload = stream[at + HEADER.size : at + HEADER.size + payload_bytes]
        assert len(payload) == payload_bytes or not payload, "a frame was cut short"
        at += HEADER.size + payload_bytes
        if kind != STEP:
            message = msgpack.unpackb(payload) if payload else None
            found.append(Recorded(kind, (), (), (), (), message))
            continue
        values = 3 * sequences + 2 * runs + rows + stages
        begin = -(-(HEADER.size + 4 * values) // 64) * 64 - HEADER.size
        width = hidden * itemsize
        assert len(payload) == begin + tensor_rows * width, "bytes beyond the fields"
        assert not any(payload[4 * values : begin]), "padding that is not zero"
        arrays = np.frombuffer(payload, np.int32, values).tolist()
        found.append(
            Recorded(
                kind,
                (tokens, hidden, sequences, runs, rows, tensor_rows, stages, last),
                tuple(arrays[: values - stages]),
                tuple(arrays[values - stages :]),
                tuple(payload[begin + i * width : begin + (i + 1) * width] for i in range(tensor_rows)),
                None,
            )
        )
    return found
