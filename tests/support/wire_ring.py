"""A small ring for the wire's tests: a plan without a planner, certificates, and members in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from languagepipes_api.names import Identity
from languagepipes_api.plan import EndModelAssignment, LayerRange, Plan, StageAssignment
from languagepipes_node.model.batch import Batch
from languagepipes_node.net.tls import TlsFiles
from languagepipes_node.wire.end_model_communicator import EndModelCommunicator
from languagepipes_node.wire.link import Timing
from languagepipes_node.wire.stage_communicator import StageCommunicator
from languagepipes_node.wire.tls_transport import TlsTransport
from languagepipes_node.wire.transport import Transport
from languagepipes_operator.certificates.authority import KeyPair, issue, new_ca, write_tls_dir

from support.ports import free_address

FAST = Timing(
    heartbeat_seconds=0.05, silence_seconds=0.4, handshake_seconds=1.0, connect_seconds=3.0, patience_seconds=0.5
)


def make_plan(
    *,
    stages: int = 3,
    hidden_size: int = 8,
    dtype: str = "float32",
    frame_tokens: int = 64,
    kv_blocks: int = 32,
    frames_in_flight: int = 4,
    max_context: int = 256,
    block_tokens: int = 16,
    tail: bool = False,
    revision: str = "r1",
) -> Plan:
    layers = stages + 1 + int(tail)
    return Plan(
        model_revision=revision,
        family="llama",
        layer_count=layers,
        hidden_size=hidden_size,
        dtype=dtype,  # type: ignore[arg-type]
        end_model=EndModelAssignment(
            LayerRange(0, 1), LayerRange(layers - int(tail), layers), "CPU", 1, 1, 1, 1, "front"
        ),
        stages=tuple(
            StageAssignment(f"s{place}", LayerRange(place, place + 1), "CPU", 1, 1, 1, 1, None, "even")
            for place in range(1, stages + 1)
        ),
        max_context_length=max_context,
        kv_block_tokens=block_tokens,
        kv_blocks=kv_blocks,
        kv_limited_by="s1",
        max_sequences=2,
        frame_tokens=frame_tokens,
        frames_in_flight=frames_in_flight,
        slowest_station="s1",
    )


def int32(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def one_token(*, position: int = 0, block: int = 0, block_tokens: int = 16) -> Batch:
    blocks = -(-(position + 1) // block_tokens)
    return Batch(int32(1), int32(position), int32(1), int32(block, blocks).reshape(1, 2), int32(0))


def tokens(count: int, *, wanted: tuple[int, ...] = (), block_tokens: int = 16) -> Batch:
    blocks = -(-count // block_tokens)
    return Batch(int32(count), int32(0), int32(1), int32(0, blocks).reshape(1, 2), int32(*wanted))


def identity(index: int, *, pipe: str = "p") -> Identity:
    return Identity("default", pipe, 0, "stage", index) if index else Identity("default", pipe, 0, "end-model")


@dataclass
class Pki:
    """A pipe's CA, and a TLS directory for each member."""

    root: Path
    ca: KeyPair = field(default_factory=lambda: new_ca("default", "p"))

    def files(self, who: Identity, *, ca: KeyPair | None = None, name: str = "") -> TlsFiles:
        directory = self.root / (name or f"{who.role}-{who.index}")
        if not directory.exists():
            write_tls_dir(directory, self.ca, issue(ca or self.ca, who))
        return TlsFiles(directory)


class StageLoop:
    """A stage without layers: adds 1 to every number, on a thread of its own."""

    def __init__(
        self, communicator: StageCommunicator, compute: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> None:
        self.communicator = communicator
        self.seen: list[tuple[int, int]] = []
        self._compute = compute or (lambda hidden: hidden + np.float32(1))
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        communicator.start()
        self._thread.start()

    def _run(self) -> None:
        while not self._stop:
            inbound = self.communicator.receive(0.1)
            if inbound is None:
                continue
            self.seen.append((inbound.epoch.counter, inbound.step))
            hidden = np.frombuffer(inbound.hidden, dtype=np.float32).reshape(inbound.batch.tokens, -1)
            result = self._compute(hidden)
            rows = self.communicator.rows_forward(inbound)
            if rows != len(result):
                result = result[inbound.batch.rows]
            self.communicator.forward(inbound, np.ascontiguousarray(result), 7 * self.communicator._index)

    def close(self) -> None:
        self._stop = True
        self._thread.join(timeout=5)
        assert not self._thread.is_alive()
        self.communicator.close()


@dataclass
class RunningRing:
    end: EndModelCommunicator
    loops: list[StageLoop]


TransportMaker = Callable[[int], Transport]


def free_addresses(transport: Transport, count: int) -> list[str]:
    """Addresses nobody listens on: names in memory, free ports on loopback."""
    if not isinstance(transport, TlsTransport):
        return [f"member:{index}" for index in range(count)]
    return [free_address() for _ in range(count)]


def build_ring(
    plan: Plan,
    transports: TransportMaker,
    stack: ExitStack,
    *,
    timing: Timing = FAST,
    through: Callable[[str], str] = lambda address: address,
    **stage_options: object,
) -> RunningRing:
    """All members of a plan in this process, not connected yet. through: where a member dials its successor's address,
    e.g. at a relay in front of it."""
    count = len(plan.stages) + 1
    addresses = free_addresses(transports(0), count)
    end = EndModelCommunicator(
        identity(0), plan, None, addresses[0], through(addresses[1]), timing=timing, transport=transports(0)
    )
    stack.callback(end.close)
    loops = []
    for index in range(1, count):
        communicator = StageCommunicator(
            identity(index), plan, None, addresses[index], through(addresses[(index + 1) % count]),
            timing=timing, transport=transports(index),
        )  # fmt: skip
        loop = StageLoop(communicator, **stage_options)  # type: ignore[arg-type]
        stack.callback(loop.close)
        loops.append(loop)
    return RunningRing(end, loops)
