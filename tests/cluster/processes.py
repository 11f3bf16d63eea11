"""The child processes of a test cluster: a log each, ended by process id, and never outliving this one.

A part is started through setpriv, so that the kernel ends it when this process dies in whatever way; it also does
when the thread that started it ends, so start parts from the main thread.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


class ClusterError(Exception):
    """The test cluster could not do what was asked; the message carries the end of the log that explains it."""


@dataclass
class Part:
    """One child process and its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """Kill it: nothing here is kept, and an API server that is asked to end would wait for its watchers first."""
        self.process.kill()
        self.process.wait()

    def termination_message(self, lines: int = 15) -> str:
        text = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(f"    {line}" for line in text[-lines:])


@dataclass
class Parts:
    """The parts of one cluster in the order of their start; they stop in the opposite order."""

    logs: Path
    parts: list[Part] = field(default_factory=list)

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> Part:
        """Start one part. `prefix` comes before setpriv (nsenter, to run it elsewhere)."""
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{name}.log"
        with log.open("ab") as stream:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *prefix, *map(str, argv)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a Ctrl-C is for the caller, who then stops the parts in order
            )
        part = Part(name=name, process=process, log=log)
        self.parts.append(part)
        return part

    def wait_until(
        self, ready: Callable[[], bool], *, what: str, timeout_seconds: float, blame: Part | None = None
    ) -> None:
        """Wait for a condition; a part that ends meanwhile, or the time running out, is a ClusterError with its log."""
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            for part in self.parts:
                if not part.running:
                    raise ClusterError(
                        f"{part.name} ended with {part.process.returncode}:\n{part.termination_message()}"
                    )
            if time.monotonic() > deadline:
                words = (
                    f"; the log of {blame.name}:\n{blame.termination_message()}" if blame else f"; logs in {self.logs}"
                )
                raise ClusterError(f"{what}: not within {timeout_seconds:g} s{words}")
            time.sleep(0.1)

    def stop(self) -> None:
        for part in reversed(self.parts):
            part.stop()
        self.parts.clear()
