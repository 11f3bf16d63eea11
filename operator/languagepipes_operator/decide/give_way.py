"""Which replicas give way: half a ring serves nobody, and holds what another pipe's ring may need. Pure.

A replica that never served, of which some pods are on nodes and others find none, is stopped after
`spec.rollout.progressDeadlineSeconds`: its Deployments stay, without pods. It is tried again later, each time after
twice as long, and not at the same moment as others that gave way. An annotation of its Deployments keeps when it gave
way and how often, so a restart of the operator changes nothing. A replica that holds requests never gives way; but of
one that was idle and is woken in vain the stages do, while its End Model keeps the requests.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from languagepipes_api.names import LABEL_REPLICA, LABEL_ROLE

from languagepipes_operator.decide.replicas import (
    deployments_of,
    holds_requests,
    may_be_without_stages,
    ready_since,
)
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.names import ANNOTATION_GAVE_WAY
from languagepipes_operator.observe.ownership import annotations_of, is_active, label, pod_condition, time_of
from languagepipes_operator.observe.snapshot import Children, Snapshot

_LONGEST = timedelta(hours=1)
# Where the planner sees no room yet: nodes that change are told at once.
_LOOK_AGAIN = timedelta(seconds=30)
_WHY_MAX = 300


@dataclass(frozen=True)
class GaveWay:
    """at: when it was stopped last. attempts: how often, without having served since. why: the scheduler's words."""

    at: datetime
    attempts: int
    why: str

    def annotation(self) -> str:
        return json.dumps({"at": self.at.isoformat(timespec="seconds"), "attempts": self.attempts, "why": self.why})


@dataclass(frozen=True)
class Standing:
    """What becomes of a replica. gave_way: what its Deployments keep of it. stopped: it has no pods now. due: when
    waiting alone makes a difference.
    """

    gave_way: GaveWay | None = None
    stopped: bool = False
    due: datetime | None = None


def standing(snapshot: Snapshot, replica: int, *, room: bool, keeps: bool = False) -> Standing:
    """room: whether the planner finds nodes for it now, or cannot tell. keeps: `keeps_end_model`."""
    children, now = snapshot.children, snapshot.now
    last = gave_way(children, replica)
    if last is not None and is_stopped(children, replica):
        due = retry_at(last, snapshot, replica)
        if now < due:
            return Standing(last, stopped=True, due=due)
        if not room:
            return Standing(last, stopped=True, due=now + _LOOK_AGAIN)
        return Standing(last)
    if ready_since(children, replica) is not None:
        return Standing()
    deadline = timedelta(seconds=snapshot.pipe.spec.rollout.progress_deadline_seconds)
    pods = [pod for pod in children.pods.values() if label(pod, LABEL_REPLICA) == str(replica) and is_active(pod)]
    if keeps:
        pods = [pod for pod in pods if label(pod, LABEL_ROLE) == "stage"]
    waiting = [(since, pod) for pod in pods if (since := _unschedulable_since(pod)) is not None]
    holds = any((pod.get("spec") or {}).get("nodeName") for pod in pods)
    if not waiting or not holds or (not keeps and holds_requests(snapshot, replica)):
        return Standing(last)
    since, pod = min(waiting, key=lambda each: each[0])
    if since + deadline > now:
        return Standing(last, due=since + deadline)
    why = " ".join(str(pod_condition(pod, "PodScheduled").get("message", "")).split())[:_WHY_MAX]
    return _stopped(GaveWay(now.astimezone(UTC), 1 if last is None else last.attempts + 1, why), snapshot, replica)


def _stopped(way: GaveWay, snapshot: Snapshot, replica: int) -> Standing:
    return Standing(way, stopped=True, due=retry_at(way, snapshot, replica))


def retry_at(way: GaveWay, snapshot: Snapshot, replica: int) -> datetime:
    """After the deadline doubled with each attempt, at most an hour; and up to as long again, another time for each."""
    deadline = timedelta(seconds=snapshot.pipe.spec.rollout.progress_deadline_seconds)
    doublings: int = min(max(0, way.attempts - 1), 12)
    wait = min(deadline * (1 << doublings), max(_LONGEST, deadline))
    drawn = hashlib.sha256(f"{snapshot.uid} {replica} {way.attempts}".encode()).digest()[0] / 256
    return way.at + wait * (1 + drawn)


def gave_way(children: Children, replica: int) -> GaveWay | None:
    """The last time, by its Deployments."""
    found = [each for item in deployments_of(children, replica) if (each := _read(item)) is not None]
    return max(found, key=lambda each: (each.at, each.attempts), default=None)


def is_stopped(children: Children, replica: int) -> bool:
    """Whether a Deployment of it asks for no pod because it gave way."""
    return any(item["spec"].get("replicas") == 0 and _read(item) for item in deployments_of(children, replica))


def keeps_end_model(children: Children, replica: int) -> bool:
    """Whether only its stages give way: its End Model may be without them, and has a node."""
    return may_be_without_stages(children, replica) and (
        is_stopped(children, replica)
        or any(
            label(pod, LABEL_REPLICA) == str(replica)
            and label(pod, LABEL_ROLE) == "end-model"
            and is_active(pod)
            and (pod.get("spec") or {}).get("nodeName")
            for pod in children.pods.values()
        )
    )


def _read(deployment: Manifest) -> GaveWay | None:
    text = annotations_of(deployment).get(ANNOTATION_GAVE_WAY)
    try:
        kept = json.loads(text) if text else {}
        at = time_of(kept.get("at"))
        return None if at is None or at.tzinfo is None else GaveWay(at, int(kept["attempts"]), str(kept.get("why", "")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _unschedulable_since(pod: Manifest) -> datetime | None:
    condition = pod_condition(pod, "PodScheduled")
    if condition.get("status") != "False" or condition.get("reason") != "Unschedulable":
        return None
    return time_of(condition.get("lastTransitionTime"))
