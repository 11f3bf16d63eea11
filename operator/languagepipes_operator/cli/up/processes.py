"""Members as child processes: start, restart with back-off, stop. Knows nothing of plans or models.

Each member leads a session of its own, so Ctrl-C in the terminal reaches `up` alone, which then stops them.
`parent_death.py` ends members whose parent was killed; `cleanup_watchdog.py` removes what such a parent could not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

_PARENT_DEATH = Path(__file__).with_name("parent_death.py")
_CLEANUP_WATCHDOG = Path(__file__).with_name("cleanup_watchdog.py")
# An interpreter that reads neither site-packages nor the user's environment starts in a third of the time.
_BARE_PYTHON = (sys.executable, "-I", "-S")

GRACE_SECONDS = 5.0
STEADY_SECONDS = 30.0
_FIRST_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 30.0
_LAST_WORDS_BYTES = 16 * 1024
_LAST_WORDS_LINES = 8


def backoff_seconds(failures: int) -> float:
    """How long to wait before the start after the `failures`-th death in a row: 0, 0.5, 1, 2, … 30 seconds.

    The first is at once: most deaths are the only one. A member that lived for STEADY_SECONDS starts over.
    """
    if failures <= 1:
        return 0.0
    return min(_FIRST_BACKOFF_SECONDS * 2.0 ** (failures - 2), _LONGEST_BACKOFF_SECONDS)


@dataclass(frozen=True)
class Command:
    """What to run for a member. log: stdout and stderr are appended to it."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path
    log: Path


@dataclass(frozen=True)
class Death:
    """A member ended without being asked. status: as subprocess gives it, negative for a signal."""

    name: str
    status: int
    lived_seconds: float
    termination_message: tuple[str, ...]
    restart_in_seconds: float

    def __str__(self) -> str:
        if self.status < 0:
            try:
                how = f"killed by {signal.Signals(-self.status).name}"
            except ValueError:
                how = f"killed by signal {-self.status}"
        else:
            how = f"ended with status {self.status}"
        return f"{how} after {self.lived_seconds:.1f} s"


@dataclass
class Member:
    """One member and its present process, if it has one. restarts counts starts after the first."""

    command: Command
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    log_offset: int = 0
    restarts: int = -1
    failures: int = 0
    restart_at: float = 0.0
    last_death: Death | None = field(default=None)

    @property
    def name(self) -> str:
        return self.command.name

    @property
    def pid(self) -> int | None:
        return None if self.process is None else self.process.pid


class Supervisor:
    """Keeps members running. A context: whatever happens inside, no member outlives it, nor does `directory`.

    Every method belongs to the thread that made it, which must be the main thread (see parent_death.py).
    """

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.directory = directory
        self.members: dict[str, Member] = {}
        self._clock = clock
        self._cleanup_watchdog = subprocess.Popen(
            [*_BARE_PYTHON, str(_CLEANUP_WATCHDOG), str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def start(self, commands: Sequence[Command]) -> None:
        """Start a new member for each command. Raises OSError if a process cannot be started."""
        for command in commands:
            member = self.members[command.name] = Member(command)
            self._spawn(member)

    def tend(self) -> list[Death]:
        """Reap members that ended, start those whose back-off is over, say who died. Never blocks."""
        now = self._clock()
        deaths = []
        for member in self.members.values():
            if member.process is not None and self._ended(member):
                deaths.append(self._bury(member, now))
            if member.process is None and now >= member.restart_at:
                try:
                    self._spawn(member)
                except OSError as error:  # no memory or no process slots at the moment
                    deaths.append(self._mourn(member, now, status=1, words=(f"cannot be started: {error}",)))
        return deaths

    def next_restart_seconds(self) -> float | None:
        """Until the next back-off is over; None if no member waits."""
        waits = [member.restart_at for member in self.members.values() if member.process is None]
        return max(0.0, min(waits) - self._clock()) if waits else None

    def stop(self, *, grace_seconds: float = GRACE_SECONDS, hurry: Callable[[], bool] = lambda: False) -> None:
        """SIGTERM to all members; SIGKILL to what is left after `grace_seconds`, or once `hurry()`."""
        for member in self.members.values():
            # SIGCONT, since a stopped process would act on SIGTERM only once it goes on.
            self._signal(member, signal.SIGTERM)
            self._signal(member, signal.SIGCONT)
        deadline = self._clock() + grace_seconds
        while (
            any(member.process is not None and not self._ended(member) for member in self.members.values())
            and self._clock() < deadline
            and not hurry()
        ):
            time.sleep(0.02)
        for member in self.members.values():
            self._collect(member)

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(grace_seconds=0.0)
        # End of input makes the cleanup watchdog remove the directory.
        stdin = self._cleanup_watchdog.stdin
        if stdin is not None:
            with contextlib.suppress(OSError):
                stdin.close()
        self._cleanup_watchdog.wait()
        # Done already, unless the cleanup watchdog itself was killed.
        shutil.rmtree(self.directory, ignore_errors=True)

    def _spawn(self, member: Member) -> None:
        command = member.command
        command.log.parent.mkdir(parents=True, exist_ok=True)
        with command.log.open("ab") as log:
            member.log_offset = log.tell()
            member.process = subprocess.Popen(
                [*_BARE_PYTHON, str(_PARENT_DEATH), str(os.getpid()), *command.argv],
                env=dict(command.environment),
                cwd=command.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        member.started_at = self._clock()
        member.restarts += 1
        self._tell_cleanup_watchdog(f"+{member.process.pid}")

    def _ended(self, member: Member) -> bool:
        """Whether its process ended. It stays unreaped, so that its group's number is not given away."""
        process = member.process
        if process is None:
            return True
        try:
            ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        return ended is not None

    def _collect(self, member: Member) -> int:
        """Kill what is left of its group, reap its process, and return its exit status."""
        process = member.process
        if process is None:
            return 0
        self._signal(member, signal.SIGKILL)
        # Told before the number is free again: the cleanup watchdog must never kill a stranger's group.
        self._tell_cleanup_watchdog(f"-{process.pid}")
        member.process = None
        return process.wait()

    def _bury(self, member: Member, now: float) -> Death:
        status = self._collect(member)
        return self._mourn(member, now, status, termination_message(member.command.log, member.log_offset))

    def _mourn(self, member: Member, now: float, status: int, words: tuple[str, ...]) -> Death:
        lived = now - member.started_at
        member.failures = 1 if lived >= STEADY_SECONDS else member.failures + 1
        wait = backoff_seconds(member.failures)
        member.restart_at = now + wait
        member.last_death = Death(member.name, status, lived, words, wait)
        return member.last_death

    def _signal(self, member: Member, number: signal.Signals) -> None:
        if member.process is not None:
            # PermissionError: the group holds only processes that became another user's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(member.process.pid, number)

    def _tell_cleanup_watchdog(self, line: str) -> None:
        stdin: IO[bytes] | None = self._cleanup_watchdog.stdin
        if stdin is not None:
            # A cleanup watchdog that was killed takes only the second safety net with it.
            with contextlib.suppress(OSError):
                stdin.write(f"{line}\n".encode())
                stdin.flush()


def termination_message(log: Path, offset: int) -> tuple[str, ...]:
    """The last lines that a member wrote since `offset` bytes into its log; printable characters only."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(offset, size - _LAST_WORDS_BYTES))
            text = file.read(_LAST_WORDS_BYTES).decode("utf-8", "replace")
    except OSError:
        return ()
    lines = ["".join(char if char.isprintable() else " " for char in line).rstrip() for line in text.splitlines()]
    return tuple(line for line in lines if line)[-_LAST_WORDS_LINES:]
