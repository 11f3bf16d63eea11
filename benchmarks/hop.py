"""What a hop costs: `python -m benchmarks.hop`.

A ring of three members, three processes without any compute, over the real wire: mTLS, framing, checks, slots and
wake-ups. A step of one token goes round and its time is divided by three. Beside it, in the same run, what a blocking
TLS socket alone takes for as many bytes between two processes. Both are taken in turn, so that a busy machine slows
both. Wake-ups are counted too, by what the kernel counts as voluntary context switches of all threads: a busy machine
hardly changes their number.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]
from languagepipes_api.names import Identity
from languagepipes_api.plan import EndModelAssignment, LayerRange, Plan, StageAssignment
from languagepipes_node.model.batch import Batch
from languagepipes_node.net.tls import TlsFiles
from languagepipes_node.wire.end_model_communicator import EndModelCommunicator
from languagepipes_node.wire.stage_communicator import StageCommunicator
from languagepipes_operator.certificates.authority import issue, new_ca, write_tls_dir

from benchmarks.figures import Spread, markdown_table, significant

MEMBERS = 3
HIDDEN_SIZES = (576, 4096)
TARGET_MICROSECONDS = 150.0


@dataclass(frozen=True)
class HopFigure:
    """One way, microseconds; each sample of `median` and `p99` is one repeat. tensor_bytes: one token, bfloat16.
    wake_ups: a hop, of all threads that take part.
    """

    name: str
    tensor_bytes: int
    median: Spread
    p99: Spread
    wake_ups: Spread


class _WakeUps:
    """How often threads of this process and of its children went to sleep and were woken."""

    def __init__(self) -> None:
        self.samples: list[float] = []

    @contextmanager
    def counted(self, hops: int) -> Iterator[None]:
        """One sample: those while the context was open, a hop."""
        before = self._now()
        yield
        self.samples.append((self._now() - before) / hops)

    def _now(self) -> int:
        me = psutil.Process()
        count = 0
        for process in (me, *me.children()):
            for status in Path(f"/proc/{process.pid}/task").glob("*/status"):
                lines = status.read_text().splitlines()
                count += next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
        return count


def measure(*, repeats: int = 5, rounds: int = 500) -> list[HopFigure]:
    """The ring and the bare socket for each hidden size, `repeats` times `rounds` round trips each."""
    figures = []
    for hidden_size in HIDDEN_SIZES:
        tensor_bytes = 2 * hidden_size
        ring, bare = [], []
        ring_wake_ups, bare_wake_ups = _WakeUps(), _WakeUps()
        with _ring(hidden_size) as end, _echo(tensor_bytes) as connected:
            _ring_rounds(end, hidden_size, 200)
            _echo_rounds(connected, tensor_bytes, 200)
            for _ in range(repeats):
                with ring_wake_ups.counted(rounds * MEMBERS):
                    ring.append(_ring_rounds(end, hidden_size, rounds))
                with bare_wake_ups.counted(rounds * 2):
                    bare.append(_echo_rounds(connected, tensor_bytes, rounds))
        figures.append(_figure("ring", tensor_bytes, ring, ring_wake_ups))
        figures.append(_figure("bare TLS socket", tensor_bytes, bare, bare_wake_ups))
    return figures


def table(figures: list[HopFigure]) -> str:
    """The figures as a Markdown table."""
    rows = [
        [f"{each.name}, {each.tensor_bytes} bytes", str(each.median), str(each.p99), str(each.wake_ups)]
        for each in figures
    ]
    return markdown_table(["one hop, µs", "median (least–greatest)", "p99", "wake-ups, count"], rows)


def _figure(name: str, tensor_bytes: int, repeats: list[list[float]], wake_ups: _WakeUps) -> HopFigure:
    return HopFigure(
        name,
        tensor_bytes,
        Spread.of([statistics.median(samples) for samples in repeats]),
        Spread.of([statistics.quantiles(samples, n=100)[98] for samples in repeats]),
        Spread.of(wake_ups.samples),
    )


def _plan(hidden_size: int) -> Plan:
    end_model = EndModelAssignment(LayerRange(0, 1), LayerRange(3, 3), "CPU", 0, 0, 0, 0, "benchmark")
    stages = tuple(
        StageAssignment(f"hop-{place}", LayerRange(place, place + 1), "CPU", 0, 0, 0, 0, None, "benchmark")
        for place in (1, 2)
    )
    return Plan(
        model_revision="none", family="none", layer_count=3, hidden_size=hidden_size, dtype="bfloat16",
        end_model=end_model, stages=stages, max_context_length=8192, kv_block_tokens=64, kv_blocks=1024,
        kv_limited_by="none", max_sequences=8, frame_tokens=256, frames_in_flight=3, slowest_station="none",
    )  # fmt: skip


def _identity(index: int) -> Identity:
    return Identity("default", "hop", 0, "stage", index) if index else Identity("default", "hop", 0, "end-model")


@contextmanager
def _ring(hidden_size: int) -> Iterator[EndModelCommunicator]:
    """A connected ring whose stages are processes of their own."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ca = new_ca("default", "hop")
        for index in range(MEMBERS):
            write_tls_dir(root / str(index), ca, issue(ca, _identity(index)))
        ports = _free_ports(MEMBERS)
        addresses = [f"127.0.0.1:{port}" for port in ports]
        for index in range(1, MEMBERS):
            successor = addresses[(index + 1) % MEMBERS]
            command = [sys.executable, "-m", "benchmarks.hop", "--stage", str(index), "--hidden-size", str(hidden_size)]
            command += ["--tls", str(root / str(index)), "--listen", addresses[index], "--successor", successor]
            _started(stack, command)
        end = EndModelCommunicator(_identity(0), _plan(hidden_size), TlsFiles(root / "0"), addresses[0], addresses[1])
        stack.callback(end.close)
        end.connect()
        yield end


def _ring_rounds(end: EndModelCommunicator, hidden_size: int, rounds: int) -> list[float]:
    """Microseconds a hop of each round trip."""
    hidden = np.zeros((1, hidden_size), dtype=np.uint16)
    one = np.array([1], dtype=np.int32)
    zero = np.array([0], dtype=np.int32)
    batch = Batch(one, np.array([511], dtype=np.int32), one, np.array([[8, 8]], dtype=np.int32), zero)
    samples = []
    for step in range(rounds):
        begin = time.perf_counter_ns()
        end.send(step, batch, hidden, 1)
        returned = end.receive(5.0)
        samples.append((time.perf_counter_ns() - begin) / 1000 / MEMBERS)
        if returned is None or returned.step != step:
            raise RuntimeError(f"step {step} did not return within 5 s")
        returned.release()
    return samples


@contextmanager
def _echo(tensor_bytes: int) -> Iterator[socket.socket]:
    """A TLS connection to a process that sends back what it gets."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ca = new_ca("default", "hop")
        for index in (0, 1):
            write_tls_dir(root / str(index), ca, issue(ca, _identity(index)))
        address = f"127.0.0.1:{_free_ports(1)[0]}"
        command = [sys.executable, "-m", "benchmarks.hop", "--echo", str(tensor_bytes)]
        _started(stack, [*command, "--tls", str(root / "1"), "--listen", address])
        host, port = address.split(":")
        plain = socket.create_connection((host, int(port)), 5.0)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield stack.enter_context(TlsFiles(root / "0").client_context().wrap_socket(plain))


def _echo_rounds(connected: socket.socket, size: int, rounds: int) -> list[float]:
    """Microseconds one way of each round trip."""
    sent, got = bytes(size), memoryview(bytearray(size))
    samples = []
    for _ in range(rounds):
        begin = time.perf_counter_ns()
        connected.sendall(sent)
        _read(connected, got)
        samples.append((time.perf_counter_ns() - begin) / 2000)
    return samples


def _read(connected: socket.socket, view: memoryview) -> bool:
    while len(view):
        got = connected.recv_into(view)
        if got == 0:
            return False
        view = view[got:]
    return True


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


def _started(stack: ExitStack, command: list[str]) -> None:
    """Start a process, wait until it says that it listens, and end it with the stack."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def end() -> None:
        process.terminate()
        process.wait(timeout=10)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    stack.callback(end)
    assert process.stdout is not None
    if process.stdout.readline().strip() != "listening":
        raise RuntimeError(f"{' '.join(command[2:])} did not start")


def _run_stage(options: argparse.Namespace) -> None:
    plan = _plan(options.hidden_size)
    communicator = StageCommunicator(
        _identity(options.stage), plan, TlsFiles(options.tls), options.listen, options.successor
    )
    communicator.start()
    print("listening", flush=True)
    while True:
        inbound = communicator.receive(1.0)
        if inbound is not None:
            communicator.forward(inbound, inbound.hidden, 0)


def _run_echo(options: argparse.Namespace) -> None:
    host, port = options.listen.split(":")
    with socket.create_server((host, int(port))) as server:
        print("listening", flush=True)
        accepted, _ = server.accept()
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with TlsFiles(options.tls).server_context().wrap_socket(accepted, server_side=True) as connected:
            view = memoryview(bytearray(options.echo))
            while _read(connected, view):
                connected.sendall(view)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hop", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="how often each is measured (default: 5)")
    parser.add_argument("--rounds", type=int, default=500, help="round trips a repeat (default: 500)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    for name in ("--stage", "--echo", "--hidden-size"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    for name in ("--listen", "--successor", "--tls"):
        parser.add_argument(name, type=Path if name == "--tls" else str, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage is not None:
        _run_stage(options)
        return 0
    if options.echo is not None:
        _run_echo(options)
        return 0
    figures = measure(repeats=options.repeats, rounds=options.rounds)
    if options.json:
        print(json.dumps([
            {"name": each.name, "tensor_bytes": each.tensor_bytes,
             "median_microseconds": each.median.to_json(), "p99_microseconds": each.p99.to_json(),
             "wake_ups": each.wake_ups.to_json()}
            for each in figures
        ]))  # fmt: skip
        return 0
    print(table(figures))
    worst = max(each.median.median for each in figures if each.name == "ring")
    verdict = "met" if worst <= TARGET_MICROSECONDS else "missed"
    print(f"\nTarget: at most {TARGET_MICROSECONDS:.0f} µs a hop at the median: {verdict} ({significant(worst)} µs)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
