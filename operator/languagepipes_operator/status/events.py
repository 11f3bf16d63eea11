"""Which Events a new status is worth: one for each change of a condition's status or reason, with its message.

Compares two statuses and nothing else: an operator that was restarted repeats nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from languagepipes_operator.observe.ownership import time_of
from languagepipes_operator.status.condition_state import condition_in
from languagepipes_operator.status.failures import bounded
from languagepipes_operator.status.reasons import REASONS

# In this order: causes before what they cause. EndpointReady repeats the messages of the others, and so does
# Progressing except for what blocks it.
_RECORDED = ("Planned", "WeightsAvailable", "StagesReady", "Ready", "Degraded", "Progressing", "ScalingActive")


@dataclass(frozen=True)
class Event:
    """The content of an Event about the pipe. reason and message are a condition's."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def events_of(previous: Mapping[str, Any] | None, status: Mapping[str, Any]) -> list[Event]:
    """Empty while no condition changed: a message that alone changed is no Event."""
    found: list[Event] = []
    for kind in _RECORDED:
        was, now = condition_in(previous, kind), condition_in(status, kind)
        if not now or (was.get("status"), was.get("reason")) == (now["status"], now["reason"]):
            continue
        if now["status"] == "Unknown" or (kind == "Degraded" and now["status"] == "False"):
            continue
        event = Event(_type(now), now["reason"], bounded(now["message"]))
        if kind == "Ready" and now["status"] == "True" and condition_in(previous, "Degraded").get("status") == "True":
            event = Event("Normal", "Recovered", bounded(f"{_recovered(was, now)}: {now['message']}"))
        if kind == "Progressing" and (event.type == "Normal" or event.reason == _ready_reason(status)):
            continue
        if all(event.reason != other.reason for other in found):
            found.append(event)
    return found


def _recovered(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Ready turned False when it was lost: that time stays in the status, also while the operator is away."""
    lost, back = time_of(was.get("lastTransitionTime")), time_of(now.get("lastTransitionTime"))
    return "recovered" if lost is None or back is None else f"recovered after {(back - lost).total_seconds():.0f} s"


def _ready_reason(status: Mapping[str, Any]) -> str:
    return str(condition_in(status, "Ready").get("reason", ""))


def _type(condition: Mapping[str, Any]) -> Literal["Normal", "Warning"]:
    known = REASONS.get(condition["reason"])
    # A reason that is not in our table comes from the planner or the store, which give reasons for failures only.
    return "Normal" if known is not None and known.normal else "Warning"
