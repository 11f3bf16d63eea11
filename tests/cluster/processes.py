"""The child processes of a test cluster: a log each, ended by process id, and never outliving this one.

Each is started through setpriv, so that the kernel ends it when this process dies in whatever way; it also does
when the thread that started it ends, so start them from the main thread.
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
class ManagedProcess:
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

    def log_tail(self, lines: int = 15) -> str:
        text = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(f"    {line}" for line in text[-lines:])


@dataclass
class ProcessGroup:
    """The processes of one cluster in the order of their start; they stop in the opposite order."""

    logs: Path
    members: list[ManagedProcess] = field(default_factory=list)

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> ManagedProcess:
        """Start one process. `prefix` comes before setpriv (nsenter, to run it elsewhere)."""
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{name}.log"
        with log.open("ab") as stream:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *prefix, *map(str, argv)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a Ctrl-C is for the caller, who then stops them in order
            )
        member = ManagedProcess(name=name, process=process, log=log)
        self.members.append(member)
        return member

    def wait_until(
        self, ready: Callable[[], bool], *, what: str, timeout_seconds: float, blame: ManagedProcess | None = None
    ) -> None:
        """Wait for a condition. Raises ClusterError, with a log, if a process ends meanwhile or time runs out."""
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            for member in self.members:
                if not member.running:
                    raise ClusterError(f"{member.name} ended with {member.process.returncode}:\n{member.log_tail()}")
            if time.monotonic() > deadline:
                log = f"; the log of {blame.name}:\n{blame.log_tail()}" if blame else f"; logs in {self.logs}"
                raise ClusterError(f"{what}: not within {timeout_seconds:g} s{log}")
            time.sleep(0.1)

    def stop(self) -> None:
        for member in reversed(self.members):
            member.stop()
        self.members.clear()
