"""In how many seconds a pipe is reconciled again although no watch has reported a change. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

# While something is not well, since its Events say why.
_UNWELL_SECONDS = 5.0
# While another object holds a child's name, or the API server refuses a child: the reason may go away unseen.
_BLOCKED_SECONDS = 30.0
# While a pipe is not Ready, since more can change than is watched.
_NOT_READY_SECONDS = 60.0
# While this version cannot read the resource: whatever was said of it may be gone from the status since.
UNREADABLE_SECONDS = 60.0
_LONGEST_SECONDS = 3600.0


def seconds_to_next(
    *, now: datetime, due: Iterable[datetime | None], ready: bool, unwell: bool, blocked: bool
) -> float:
    """due: when the next step for the pipe's certificates, or of a rollout, may be due. unwell: something is on its
    way, or has stopped. blocked: the spec cannot be carried out as it stands.
    """
    seconds = [_LONGEST_SECONDS, *(max(0.0, (each - now).total_seconds()) for each in due if each is not None)]
    if unwell:
        seconds.append(_UNWELL_SECONDS)
    if blocked:
        seconds.append(_BLOCKED_SECONDS)
    if not ready:
        seconds.append(_NOT_READY_SECONDS)
    return min(seconds)
