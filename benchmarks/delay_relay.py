"""`languagepipes up` with time added to each hop: a relay of TCP bytes before every member.

    python -m benchmarks.delay_relay up PIPE.yaml …      # as `languagepipes`, with $BENCH_DELAY_FILE naming the delay

The members are the same, and mTLS passes through the relays untouched; only the address that a member dials as its
successor is the relay's. What passes a relay, in either direction, leaves it so many seconds after it came. The delay
is one float64 in a file that both sides map, so it can be changed while a ring runs. The relays are one process of
their own with two threads a direction; what they cost themselves shows at a delay of nothing.
"""

from __future__ import annotations

import mmap
import os
import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from languagepipes_operator.cli.main import main as languagepipes
from languagepipes_operator.cli.up import members

from benchmarks.models import ROOT

VARIABLE = "BENCH_DELAY_FILE"
_FORMAT = "=d"
_CHUNK_BYTES = 64 * 1024


class DelayFile:
    """The delay of all hops in seconds, one way. Whoever maps the same file sees a change at once."""

    def __init__(self, file: Path) -> None:
        self.file = file
        if not file.exists():
            file.write_bytes(struct.pack(_FORMAT, 0.0))
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), struct.calcsize(_FORMAT))

    @property
    def seconds(self) -> float:
        value: float = struct.unpack_from(_FORMAT, self._map)[0]
        return value

    @seconds.setter
    def seconds(self, value: float) -> None:
        if not value >= 0:
            raise ValueError(f"a delay of {value} s: it is 0 or more")
        struct.pack_into(_FORMAT, self._map, 0, value)


class Relay:
    """Passes bytes on to `target` and back, late. Listens on `address` from its making until its process ends."""

    def __init__(self, target: str, delay: DelayFile) -> None:
        self._target, self._delay = target, delay
        self._listener = socket.create_server(("127.0.0.1", 0))
        host, port = self._listener.getsockname()
        self.address = f"{host}:{port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        host, _, port = self._target.rpartition(":")
        while True:
            near, _ = self._listener.accept()
            try:
                far = socket.create_connection((host, int(port)), timeout=5.0)
            except OSError:
                near.close()  # the member is not there yet, or no longer: whoever dialled tries again
                continue
            far.settimeout(None)
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        waiting: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        threading.Thread(target=_send_when_due, args=(waiting, sink), daemon=True).start()
        data = b"-"
        while data:
            try:
                data = source.recv(_CHUNK_BYTES)
            except OSError:
                data = b""
            waiting.put((time.monotonic() + self._delay.seconds, data))


def _send_when_due(waiting: queue.SimpleQueue[tuple[float, bytes]], sink: socket.socket) -> None:
    """Until the end of the stream, which is passed on too."""
    while True:
        due, data = waiting.get()
        if (left := due - time.monotonic()) > 0:
            time.sleep(left)
        try:
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            sink.sendall(data)
        except OSError:
            return


def _serve(delay_file: Path, targets: list[str]) -> None:
    """In a process of its own: prints the relays' addresses, ends with its standard input."""
    delay = DelayFile(delay_file)
    print(*(Relay(target, delay).address for target in targets), flush=True)
    sys.stdin.read()


def _start_relays(delay_file: Path, targets: list[str]) -> list[str]:
    """Addresses in the order of the targets. The process ends with this one, whose end closes its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.delay_relay", "--relays", str(delay_file), *targets],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    addresses = process.stdout.readline().split()
    if len(addresses) != len(targets):
        raise RuntimeError(f"the relays ended with status {process.wait()}")
    _RELAYS.append(process)
    return addresses


_RELAYS: list[subprocess.Popen[str]] = []  # their pipes stay open as long as this process lives
_member_processes = members.member_processes


def _delayed_member_processes(*positional: Any, **named: Any) -> list[members.MemberProcess]:
    """As `up` would start them, each with a relay before its successor."""
    found = _member_processes(*positional, **named)
    addresses = _start_relays(Path(os.environ[VARIABLE]), [str(member.settings.successor) for member in found])
    return [
        replace(member, settings=member.settings.model_copy(update={"successor": address}))
        for member, address in zip(found, addresses, strict=True)
    ]


def main() -> int:
    if sys.argv[1:2] == ["--relays"]:
        _serve(Path(sys.argv[2]), sys.argv[3:])
        return 0
    members.member_processes = _delayed_member_processes
    return languagepipes(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
