"""The process that imports torch once for all members and forks them (`languagepipes_node.fork_server`), as `up` sees.

It may be missing at any time: then `lost` says why, and members are started one by one, each with imports of its own.
Light to import, since `up` starts it before its own imports.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType

from languagepipes_api.fork_server import ForkAnswer, ForkRequest

from languagepipes_operator.cli.up import parent_death

_PR_SET_CHILD_SUBREAPER = 36
# A fork takes milliseconds; a machine that swaps may take seconds.
_ANSWER_SECONDS = 10.0
_LAST_BYTES = 4096


class ForkServerLost(Exception):
    """There is no fork server, and there will be none; the message says why."""


class ForkFailed(OSError):
    """The fork server could not make this process."""


class ForkedProcess:
    """A member that the fork server made and left to this process. As much of `subprocess.Popen` as is used."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def wait(self) -> int:
        """Its exit status, negative for a signal."""
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # somebody else reaped it; subprocess says the same then
            return 0


class ForkServer:
    """A context: it ends with it. environment: its variables, which those of the members that it forks replace.

    lost: why it forks nothing; empty while it does or still imports. Its methods belong to the main thread (see
    parent_death.py), and it makes this process the parent of orphans of all processes below it.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.lost = ""
        self._imported = False
        self._received = b""
        self._process: subprocess.Popen[bytes] | None = None
        self._output = os.memfd_create("fork-server")
        self._channel, theirs = socket.socketpair()
        with theirs:
            try:
                _take_orphans(True)
                self._process = subprocess.Popen(
                    # -P: what lies in the working directory is no module of ours.
                    parent_death.tied(
                        (sys.executable, "-P", "-m", "languagepipes_node", "fork-server", str(theirs.fileno()))
                    ),
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=self._output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except OSError as error:
                self.lost = str(error)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def settled(self) -> bool:
        """Look at it: whether it can fork, or never will. Never blocks."""
        if not self.lost and self._process is not None:
            with contextlib.suppress(ForkServerLost, BlockingIOError):
                if not self._imported:
                    self._channel.setblocking(False)
                    self._imported = not self._answer().error
                elif (status := self._process.poll()) is not None:
                    raise self._lose(f"it ended with status {status}")
        return self._imported or bool(self.lost)

    def fork(self, request: ForkRequest) -> ForkedProcess:
        """A new member. Raises ForkServerLost, or ForkFailed if this one process could not be made."""
        if self.lost or not self._imported:
            raise ForkServerLost(self.lost or "it has not imported its modules yet")
        self._channel.settimeout(_ANSWER_SECONDS)
        try:
            self._channel.sendall(request.to_line())
        except OSError as error:
            raise self._lose(f"it cannot be asked ({error})") from error
        try:
            answer = self._answer()
        except TimeoutError:
            # Killed, so that it makes no process that nobody knows of. What it said before counts.
            self._kill()
            answer = self._answer()
        if answer.pid is None:
            raise ForkFailed(answer.error)
        return ForkedProcess(answer.pid)

    def close(self) -> None:
        """End it. Members that it forked live on."""
        self._channel.close()
        self._kill()
        with contextlib.suppress(OSError):
            _take_orphans(False)
        os.close(self._output)

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> ForkAnswer:
        """Raises ForkServerLost, or what the socket raises where none comes in time."""
        while b"\n" not in self._received:
            try:
                data = self._channel.recv(4096)
            except (BlockingIOError, TimeoutError):
                raise
            except OSError as error:
                raise self._lose(str(error)) from error
            if not data:
                raise self._lose("it ended")
            self._received += data
        line, self._received = self._received.split(b"\n", 1)
        answer = ForkAnswer.from_line(line)
        if answer.error and not self._imported:
            raise self._lose(answer.error)
        return answer

    def _lose(self, why: str) -> ForkServerLost:
        self._kill()
        words = self._last_words()
        self.lost = f"{why}: {words}" if words else why
        return ForkServerLost(self.lost)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        """The last line that it printed."""
        begin = max(0, os.fstat(self._output).st_size - _LAST_BYTES)
        lines = os.pread(self._output, _LAST_BYTES, begin).decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _take_orphans(take: bool) -> None:
    """Whether what loses its parent below this process becomes its child. Raises OSError where the kernel cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, int(take), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"orphans cannot be taken: {os.strerror(number)}")
