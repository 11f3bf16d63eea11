"""Where other people's servers are built and installed, once for each version: ~/.cache/languagepipes/peers.

What was half made is made again; what is whole is used as it is. A peer that cannot be had on a machine is reported
with its reason, so every step raises PeerMissing with the end of what the tool printed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import httpx

from benchmarks.processes import Server

PEERS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "languagepipes" / "peers"
_QUOTED_CHARACTERS = 600


class PeerMissing(RuntimeError):
    """A peer could not be built or installed on this machine; the message says which step failed and quotes it."""


class PeerServers(ABC):
    """A peer's processes, as a context manager: what was started is stopped, the last one first, also where a later
    one does not start. url: of its API, once it runs.
    """

    model_id = "bench"

    def __init__(self) -> None:
        self.url = ""
        self._servers: list[Server] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        while self._servers:
            self._servers.pop().stop()

    @property
    def process_ids(self) -> list[int]:
        """Of its processes, their children not included."""
        return [server.pid for server in self._servers]

    @abstractmethod
    def _start(self) -> None:
        """Raises PeerMissing or ServerFailed."""

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url.removesuffix('/v1')}/health", timeout=2.0).status_code == 200
        except httpx.HTTPError:
            return False


def run_step(
    what: str, command: Sequence[str | Path], *, log: Path, environment: Mapping[str, str] | None = None
) -> None:
    """Run one step of a build; all that it prints goes to `log`. Raises PeerMissing if it fails or cannot be begun."""
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{time.strftime('%H:%M:%S')}  {what} (log: {log})", file=sys.stderr, flush=True)
    with log.open("wb") as output:
        try:
            status = subprocess.run(
                [str(word) for word in command],
                env=None if environment is None else dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        except OSError as error:
            raise PeerMissing(f"{what}: {command[0]} cannot be run: {error.strerror}; install it") from error
    if status != 0:
        end = log.read_text(errors="replace").strip()[-_QUOTED_CHARACTERS:]
        raise PeerMissing(f"{what}: {Path(command[0]).name} ended with status {status}; its log {log} ends: {end}")


def cpu_flags() -> frozenset[str]:
    """The processor's flags as /proc/cpuinfo names them; empty where it names none."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()
