"""Members as child processes: start, restart or give up (`restarts`), stop. Knows nothing of plans or models.

Each member leads a session of its own, so Ctrl-C in the terminal reaches `up` alone, which then stops them.
`parent_death.py` ends members whose parent was killed; `cleanup_watchdog.py` removes what such a parent could not.
`fork_server.py` makes members that need no imports of their own, as long as it is there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol

from languagepipes_api.fork_server import ForkRequest
from languagepipes_api.termination import Termination

from languagepipes_operator.cli.up import parent_death
from languagepipes_operator.cli.up.fork_server import ForkServer, ForkServerLost
from languagepipes_operator.cli.up.member_log import MemberLog
from languagepipes_operator.cli.up.orphans import Orphans
from languagepipes_operator.cli.up.restarts import Lives, restart_in_seconds

_CLEANUP_WATCHDOG = Path(__file__).with_name("cleanup_watchdog.py")

GRACE_SECONDS = 5.0
# Orphans were killed: this long for the kernel to end them.
_ORPHANS_SECONDS = 1.0
# As much as the kubelet keeps.
_TERMINATION_BYTES = 4096


@dataclass(frozen=True)
class Command:
    """What to run for a member. log: stdout and stderr are appended to it.

    termination_log: where the program writes why it ended, if it does (`languagepipes_api.termination`).
    forks: whether the fork server can make the process: `argv` is the node's program, and it imports torch but uses no
    GPU.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path
    log: Path
    termination_log: Path | None = None
    forks: bool = False


class Process(Protocol):
    """A child of this process."""

    @property
    def pid(self) -> int: ...

    def wait(self) -> int:
        """Its exit status as subprocess gives it."""


@dataclass(frozen=True)
class Death:
    """A member ended without being asked. status: as subprocess gives it, negative for a signal.

    termination: why, if the member says so. last_lines: of its log. restart_in_seconds: None if it is given up.
    """

    name: str
    status: int
    lived_seconds: float
    termination: Termination | None
    last_lines: tuple[str, ...]
    restart_in_seconds: float | None

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
    """One member and its present process, if it has one. restarts counts starts after the first.

    ready_at: since when the present process is ready, by the supervisor's clock; None: it is not yet.
    """

    command: Command
    process: Process | None = None
    started_at: float = 0.0
    ready_at: float | None = None
    restarts: int = -1
    lives: Lives = field(default_factory=Lives)
    restart_at: float = 0.0
    last_death: Death | None = field(default=None)
    log: MemberLog = field(init=False)

    def __post_init__(self) -> None:
        self.log = MemberLog(self.command.log)

    @property
    def name(self) -> str:
        return self.command.name

    @property
    def pid(self) -> int | None:
        return None if self.process is None else self.process.pid

    @property
    def given_up(self) -> bool:
        return self.process is None and self.last_death is not None and self.last_death.restart_in_seconds is None


class Supervisor:
    """Keeps members running. A context: whatever happens inside, no member outlives it, nor does `directory`.

    Every method belongs to the thread that made it, which must be the main thread (see parent_death.py).
    fork_server: makes the members that can be forked, as long as it is there; it is closed by who made it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        fork_server: ForkServer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = directory
        self.members: dict[str, Member] = {}
        self._fork_server = fork_server
        self._clock = clock
        self._orphans = Orphans()
        self._cleanup_watchdog = subprocess.Popen(
            [*parent_death.BARE_PYTHON, str(_CLEANUP_WATCHDOG), str(directory)],
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
        """Reap members that ended, start those whose back-off is over, say who died; bound the logs. Never blocks."""
        now = self._clock()
        deaths = []
        for member in self.members.values():
            if member.process is not None and self._ended(member):
                deaths.append(self._bury(member, now))
            if member.process is None and not member.given_up and now >= member.restart_at:
                try:
                    self._spawn(member)
                except OSError as error:  # no memory or no process slots at the moment
                    member.started_at, member.ready_at = now, None
                    deaths.append(self._mourn(member, now, status=1, last_lines=(f"cannot be started: {error}",)))
        for member in self.members.values():
            member.log.bound()
        self._orphans.reap()
        return deaths

    def ready(self, name: str) -> None:
        """The member `name` says that it is ready: what ends it from now on is no failure to start."""
        member = self.members[name]
        if member.ready_at is None:
            member.ready_at = self._clock()

    def given_up(self) -> Death | None:
        """How the first member ended that is not started again; None if there is none."""
        return next((member.last_death for member in self.members.values() if member.given_up), None)

    def next_restart_seconds(self) -> float | None:
        """Until the next back-off is over; None if no member waits."""
        waits = [
            member.restart_at for member in self.members.values() if member.process is None and not member.given_up
        ]
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
        self._orphans.reap(within_seconds=_ORPHANS_SECONDS)

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
        if command.termination_log is not None:
            # Made here, and empty: the node writes only into a file that is there, and an earlier life's words are not
            # this one's.
            command.termination_log.parent.mkdir(parents=True, exist_ok=True)
            command.termination_log.write_bytes(b"")
        with member.log.open() as log:
            member.process = self._fork(command) or subprocess.Popen(
                parent_death.tied(command.argv),
                env=dict(command.environment),
                cwd=command.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        member.started_at, member.ready_at = self._clock(), None
        member.restarts += 1
        self._tell_cleanup_watchdog(f"+{member.process.pid}")

    def _fork(self, command: Command) -> Process | None:
        """By the fork server; None where it cannot. Raises OSError if it can, but makes no process now."""
        if self._fork_server is None or not command.forks:
            return None
        request = ForkRequest(
            name=command.name,
            environment=command.environment,
            directory=command.directory,
            log=command.log,
            parent=os.getpid(),
        )
        try:
            return self._fork_server.fork(request)
        except ForkServerLost:  # whoever looks at it says so
            return None

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
        status = process.wait()
        self._orphans.expect(process.pid)
        return status

    def _bury(self, member: Member, now: float) -> Death:
        status = self._collect(member)
        return self._mourn(member, now, status, member.log.last_lines(), _termination(member.command))

    def _mourn(
        self,
        member: Member,
        now: float,
        status: int,
        last_lines: tuple[str, ...],
        termination: Termination | None = None,
    ) -> Death:
        was_ready = member.ready_at is not None
        member.lives = member.lives.and_one(ready_seconds=None if member.ready_at is None else now - member.ready_at)
        wait = restart_in_seconds(member.lives, termination, was_ready=was_ready)
        member.restart_at = now + (wait or 0.0)
        member.last_death = Death(member.name, status, now - member.started_at, termination, last_lines, wait)
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


def _termination(command: Command) -> Termination | None:
    if command.termination_log is None:
        return None
    try:
        with command.termination_log.open("rb") as file:
            return Termination.parse(file.read(_TERMINATION_BYTES).decode("utf-8", "replace"))
    except OSError:
        return None
