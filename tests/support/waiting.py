"""What these tests wait for: conditions that come true, processes that end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# How long a test waits for what has no bound of its own: a machine that is shared may need a minute for a pod, and a
# test that passes does not wait longer for it.
PATIENCE_SECONDS = 300.0


def eventually(
    condition: Callable[[], T | None],
    *,
    seconds: float = PATIENCE_SECONDS,
    what: str | Callable[[], str] = "",
    every_seconds: float = 0.02,
    not_yet: tuple[type[Exception], ...] = (),
) -> T:
    """The first answer of `condition` that is true. Raises AssertionError after `seconds`.

    what: is awaited, or tells it once the time is up. not_yet: exceptions that count as false until the time is up; any
    other fails the test at once.
    """
    deadline = time.monotonic() + seconds
    while True:
        problem: Exception | None = None
        try:
            if found := condition():
                return found
            last = repr(found)
        except not_yet as error:
            last, problem = repr(error), error
        if time.monotonic() > deadline:
            awaited = what() if callable(what) else what
            raise AssertionError(f"not within {seconds:g} s: {awaited or condition}; last: {last}") from problem
        time.sleep(every_seconds)


def alive(pid: int) -> bool:
    """Whether `pid` still runs; a zombie that nobody has reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
