"""Reaps what members leave behind: `up` is the parent of orphans below it (`fork_server.py`)."""

from __future__ import annotations

import os
import time


class Orphans:
    """Processes that members left behind. This process is their parent once the member is gone, and reaps them."""

    def __init__(self) -> None:
        self._groups: list[int] = []

    def expect(self, group: int) -> None:
        """The leader of `group` was reaped and the others were killed."""
        self._groups.append(group)

    def reap(self, *, within_seconds: float = 0.0) -> None:
        """Those that have ended; those that end within that time too."""
        deadline = time.monotonic() + within_seconds
        while True:
            self._groups = [group for group in self._groups if not _reaped(group)]
            if not self._groups or time.monotonic() >= deadline:
                return
            time.sleep(0.005)


def _reaped(group: int) -> bool:
    """Whether no child of that group is left."""
    try:
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False
