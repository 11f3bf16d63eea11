"""Server processes that a benchmark starts, waits for and ends: its own by process id, and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]


class ServerFailed(RuntimeError):
    """A server did not come up, or ended; the message quotes the end of its log."""


class Server:
    """One process in a group of its own, its output in `log`."""

    def __init__(self, command: Sequence[str], *, log: Path, environment: Mapping[str, str], directory: Path) -> None:
        self.log = log
        self.started = time.perf_counter()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool], *, what: str, timeout_seconds: float, every: float = 0.1) -> None:
        """Poll `ready`. Raises ServerFailed if the process ends before, or if it takes too long."""
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            if (status := self._process.poll()) is not None:
                raise ServerFailed(
                    f"{what}: the process ended with status {status}; its log ends:\n{self.termination_message()}"
                )
            if time.monotonic() > deadline:
                raise ServerFailed(
                    f"{what}: not within {timeout_seconds:.0f} s; its log ends:\n{self.termination_message()}"
                )
            time.sleep(every)

    def termination_message(self, lines: int = 12) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, *, signal_number: int = signal.SIGTERM, grace_seconds: float = 15.0) -> None:
        """Ask, wait, then kill what is left of the group."""
        if self._process.poll() is None:
            self._process.send_signal(signal_number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the group outlives its leader while members run
        self._process.wait()


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(address: str) -> Callable[[], bool]:
    """Whether host:port takes a connection, for `Server.wait_until`."""
    host, _, port = address.rpartition(":")

    def ready() -> bool:
        try:
            socket.create_connection((host, int(port)), timeout=1.0).close()
        except OSError:
            return False
        return True

    return ready


def cpu_seconds(process_ids: Iterable[int]) -> float:
    """CPU time so far of these processes and all that descend from them; of one that has ended: none."""
    total = 0.0
    for process_id in process_ids:
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(process_id)
            for process in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    total += times.user + times.system
    return total
