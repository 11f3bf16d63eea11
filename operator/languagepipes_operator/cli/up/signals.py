"""Signals as something to wait for: Ctrl-C and its kin ask to stop, SIGCHLD says that a member ended."""

from __future__ import annotations

import select
import signal
import socket
from types import FrameType, TracebackType
from typing import Any

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """A context for the main thread. `stops` counts the requests to stop; the second one means at once.

    Handlers only count; the interpreter's wake-up descriptor ends a wait. (An Event set from a handler can
    deadlock with the wait that it interrupts.)
    """

    def __init__(self) -> None:
        self.stops = 0
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._former: dict[int, Any] = {}
        self._former_descriptor = -1

    @property
    def stopping(self) -> bool:
        return self.stops > 0

    def wait(self, seconds: float) -> None:
        """Until a signal comes, at most `seconds`."""
        if select.select([self._reader], [], [], max(0.0, seconds))[0]:
            while True:
                try:
                    if not self._reader.recv(4096):
                        return
                except BlockingIOError:
                    return

    def __enter__(self) -> Interrupts:
        for number in _STOP_SIGNALS:
            self._former[number] = signal.signal(number, self._stop)
        # A handler of our own, since signals that are ignored wake nobody.
        self._former[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, self._child)
        self._former_descriptor = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._former_descriptor)
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._reader.close()
        self._writer.close()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stops += 1

    def _child(self, number: int, frame: FrameType | None) -> None:
        pass
