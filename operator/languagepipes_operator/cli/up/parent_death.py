"""Run as a script: `parent_death.py PARENT ARGV…` becomes ARGV, and dies when PARENT does. Standard library only.

The kernel keeps the promise (PR_SET_PDEATHSIG, prctl(2)), so it holds for a parent that is killed too. It
follows the thread that forked: start members from a thread that lives as long as its process. A wrapper that
execs is used because code between fork and exec (`preexec_fn`) is unsafe in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
PARENT_GONE = 113
# An interpreter that reads neither site-packages nor the user's environment starts in a third of the time.
BARE_PYTHON = (sys.executable, "-I", "-S")


def tied(argv: Sequence[str]) -> list[str]:
    """The command line that becomes `argv` and dies with this process. Start it from the main thread."""
    return [*BARE_PYTHON, __file__, str(os.getpid()), *argv]


def main(argv: list[str]) -> None:
    """Never returns. Exits if the parent is gone already; raises OSError if the program cannot be run."""
    parent, command = int(argv[0]), argv[1:]
    # Hidden states count as text, and a core file would hold them.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # A parent that died before prctl took hold would never be noticed otherwise.
    if os.getppid() != parent:
        sys.exit(PARENT_GONE)
    os.execv(command[0], command)  # noqa: S606 - to become this program is the point


if __name__ == "__main__":
    main(sys.argv[1:])
