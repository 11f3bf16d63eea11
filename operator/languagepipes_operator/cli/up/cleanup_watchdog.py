"""Run as a script beside `languagepipes up`: cleans up after it if it is killed. Standard library only.

`cleanup_watchdog.py DIRECTORY` reads lines from stdin: `+PID` when a member's process group starts, `-PID` when it
is gone. At the end of input (`up` left, by whatever way) it kills the groups that remain and removes
DIRECTORY, which holds private keys. After an orderly end the directory is all that is left to remove.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time

_PATIENCE_SECONDS = 5.0


def main(argv: list[str]) -> int:
    """Wait for the end of stdin, then clean up. Signals that mean `up` are ignored: this must outlive it."""
    directory = argv[0]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        sign, group = line[0], int(line[1:])
        if sign == "+":
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    # A member on its way out may still add a file to a directory that is being removed.
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while os.path.lexists(directory) and time.monotonic() < deadline:
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(0.02)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
