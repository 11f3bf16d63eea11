"""SIGNATURES FIRST; bodies follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from languagepipes_api.names import Identity
from languagepipes_api.plan import Plan
from languagepipes_node.model.batch import Batch
from languagepipes_node.wire.hello import Entry, Epoch
from languagepipes_node.wire.tls import TlsFiles

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Timing:
    """Seconds. Tests scale them down."""

    heartbeat_seconds: float = 0.2
    silence_seconds: float = 1.0
    handshake_seconds: float = 2.0
    connect_seconds: float = 5.0


@dataclass(frozen=True)
class StationState:
    """What /status tells: epoch (None while the ring is down), why it is down, highest epoch counter seen."""

    epoch: Epoch | None
    highest: Epoch
    reason: str
    dropped_frames: int


@dataclass(frozen=True)
class RingInfo:
    """A ring that is whole. stations: what each said of itself in the hello, the End Model first (kv_id tells whether
    a station lost its KV since the last epoch)."""

    epoch: Epoch
    stations: tuple[Entry, ...]


class Inbound:
    """A frame at a stage. All of it lies in a receive slot: valid until `StageStation.forward` or `release`.

    batch: views into the slot. hidden: writable bytes [batch.tokens × hidden_size × itemsize]. step: the End Model's.
    """

    batch: Batch
    step: int
    epoch: Epoch
    hidden: memoryview

    @property
    def busy_microseconds(self) -> list[int]: ...

    def release(self) -> None: ...


class Returned:
    """A frame that came home. hidden: bytes [rows × hidden_size × itemsize], in the order of Batch.rows (all packed
    tokens where the plan has tail layers); valid until `release()`. busy_microseconds: one per stage."""

    step: int
    rows: int
    hidden: memoryview
    busy_microseconds: list[int]

    def release(self) -> None: ...


class StageStation:
    """A stage's place in the ring. `receive` and `forward` belong to one thread, the ring thread."""

    def __init__(
        self, identity: Identity, plan: Plan, tls: TlsFiles, listen: str, successor: str, *, timing: Timing = Timing()
    ) -> None: ...

    @property
    def address(self) -> str:
        """host:port that it listens on (the real port where 0 was asked for)."""
        ...

    @property
    def is_last(self) -> bool:
        """Whether the successor is the End Model: then `forward` takes the wanted rows only, `rows_home(batch)`."""
        ...

    def start(self) -> None: ...

    def receive(self, timeout_seconds: float) -> Inbound | None: ...

    def rows_forward(self, batch: Batch) -> int:
        """Rows of hidden state that `forward` takes: all tokens; at the last stage the wanted rows, or all of them if
        the plan has tail layers."""
        ...

    def forward(self, inbound: Inbound, hidden: Buffer, busy_microseconds: int) -> None: ...

    @property
    def state(self) -> StationState: ...

    def close(self) -> None: ...


class EndStation:
    """The End Model's place in the ring. `connect`, `send` and `receive` belong to the engine's thread."""

    def __init__(
        self, identity: Identity, plan: Plan, tls: TlsFiles, listen: str, successor: str, *, timing: Timing = Timing()
    ) -> None: ...

    @property
    def address(self) -> str: ...

    def start(self) -> None:
        """Listen for the last stage. connect() does it too if it was not done."""
        ...

    def connect(self) -> RingInfo:
        """One attempt. Raises RingDown(reason, code) within connect_seconds, SupersededError if this process must exit."""
        ...

    def send(self, step: int, batch: Batch, hidden: Buffer, tokens: int) -> None:
        """Raises RingDown, SupersededError; FrameError if the batch breaks the plan's limits (nothing was sent);
        at most plan.frames_in_flight frames may be out, and one more unreleased."""
        ...

    def receive(self, timeout_seconds: float) -> Returned | None:
        """Raises RingDown once the ring is lost, after the frames that came home before."""
        ...

    def drop(self, reason: str) -> None:
        """End the epoch, e.g. for a step over its deadline. Any thread. Running receives raise RingDown(reason, "deadline")."""
        ...

    @property
    def state(self) -> StationState: ...

    def close(self) -> None: ...
