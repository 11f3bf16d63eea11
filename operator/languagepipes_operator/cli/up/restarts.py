"""Whether and when a member that ended is started again. Pure.

Two kinds of ends are told apart. A member that was ready and is lost is recovered, however often that happens. One that
never was ready may be unable to start: it is given up after TRIES, or at once if it says itself that no restart helps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from languagepipes_api.termination import Termination

TRIES = 6
STEADY_SECONDS = 10.0
_FIRST_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 30.0


def backoff_seconds(failures: int) -> float:
    """How long to wait before the start after the `failures`-th end in a row: 0, 0.5, 1, 2, … 30 seconds.

    The first is at once: most ends are the only one.
    """
    if failures <= 1:
        return 0.0
    return min(_FIRST_BACKOFF_SECONDS * 2.0 ** (failures - 2), _LONGEST_BACKOFF_SECONDS)


@dataclass(frozen=True)
class Lives:
    """What counts of a member's lives so far. failures: how many in a row ended before they had been ready for
    STEADY_SECONDS (loading may take minutes, and is no sign of health). ever_ready: whether one of all was ready.
    """

    failures: int = 0
    ever_ready: bool = False

    def and_one(self, *, ready_seconds: float | None) -> Lives:
        """With one more that ended. ready_seconds: how long it was ready; None if it never was."""
        if ready_seconds is None:
            return replace(self, failures=self.failures + 1)
        return Lives(failures=1 if ready_seconds >= STEADY_SECONDS else self.failures + 1, ever_ready=True)


def restart_in_seconds(lives: Lives, termination: Termination | None, *, was_ready: bool) -> float | None:
    """How long to wait after the last of `lives`; None: the member is given up. was_ready: whether that life was.

    A life that was ready is always followed by another: what ended it came while it served.
    """
    cannot_start = not was_ready and termination is not None and termination.final
    never_starts = not lives.ever_ready and lives.failures >= TRIES
    return None if cannot_start or never_starts else backoff_seconds(lives.failures)
