"""Which Events a new status is worth: one for each turn that a condition took, with the condition's own words.

Compares two statuses and nothing else: an operator that was restarted repeats nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from languagepipes_operator.status.conditions import condition_in
from languagepipes_operator.status.failures import bounded
from languagepipes_operator.status.reasons import REASONS

# Told in this order: causes before what they cause. EndpointReady repeats the others' words, and so does Progressing
# but for what stands in the way.
_TOLD = ("Planned", "WeightsAvailable", "StagesReady", "Ready", "Degraded", "Progressing")


@dataclass(frozen=True)
class Event:
    """What an Event about the pipe says. reason and message are a condition's."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def events_of(previous: Mapping[str, Any] | None, status: Mapping[str, Any]) -> list[Event]:
    """Empty while nothing turned: a message that alone changed is no event."""
    told: list[Event] = []
    for kind in _TOLD:
        was, now = condition_in(previous, kind), condition_in(status, kind)
        if not now or (was.get("status"), was.get("reason")) == (now["status"], now["reason"]):
            continue
        if now["status"] == "Unknown" or (kind == "Degraded" and now["status"] == "False"):
            continue
        event = Event(_type(now), now["reason"], bounded(now["message"]))
        if kind == "Progressing" and (event.type == "Normal" or event.reason == _ready_reason(status)):
            continue
        if all(event.reason != other.reason for other in told):
            told.append(event)
    return told


def _ready_reason(status: Mapping[str, Any]) -> str:
    return str(condition_in(status, "Ready").get("reason", ""))


def _type(condition: Mapping[str, Any]) -> Literal["Normal", "Warning"]:
    known = REASONS.get(condition["reason"])
    # What is in no table of ours was said by the planner or the store, who give reasons for failures alone.
    return "Normal" if known is not None and known.normal else "Warning"
