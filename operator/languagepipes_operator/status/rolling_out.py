"""The condition Progressing while replicas are there that are to go: what is awaited, what goes on, and since when in
vain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from languagepipes_operator.decide.rollout import Rollout
from languagepipes_operator.observe.ownership import Member, time_of
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.status.condition_state import ConditionState, condition_in
from languagepipes_operator.status.diagnosis import Diagnosis, outdated_failures
from languagepipes_operator.status.failures import bounded, summary
from languagepipes_operator.status.outcome import Outcome

# WeightsAvailable's reasons while the store fetches, in the order of the store's phases, or cannot fetch for now.
FETCHING = ("Resolving", "Downloading", "Verifying", "Converting", "SourceUnreachable")


def rolling_out(
    snapshot: Snapshot, outcome: Outcome, found: Diagnosis, before: Mapping[str, Any]
) -> ConditionState | None:
    """None where every replica runs what is asked for, and none goes. before: the status as last read."""
    lame = _trouble_of_the_outdated(snapshot, found)
    if not found.planned:
        return None if lame is None else ConditionState("False", *lame)
    if not found.replaced and found.existing <= snapshot.replicas:
        return None
    rollout = outcome.rollout or Rollout()
    stuck = summary(cause for cause in found.causes if not cause.waits)
    late = [replica[-1].replica for replica in found.replicas if _is_late(replica, snapshot, before)]
    if late and rollout.outdated:
        return ConditionState("False", "ProgressDeadlineExceeded", _deadline_words(late, snapshot, rollout, found))
    if stuck is not None:
        return ConditionState("False", stuck.reason, stuck.message)
    words = [*_words(snapshot, rollout, found), *([lame[1]] if lame else [])]
    return ConditionState("True", "RollingOut", bounded("; ".join(words)))


def _words(snapshot: Snapshot, rollout: Rollout, found: Diagnosis) -> Iterable[str]:
    awaited = [replica[-1].replica for replica in found.replicas if not all(member.ready for member in replica)]
    if awaited:
        yield f"{_replicas(awaited)} of the new revision {_verb(awaited, 'is', 'are')} not ready yet"
    if rollout.outdated:
        serve = _verb(rollout.outdated, "serves", "serve")
        yield f"{_replicas(rollout.outdated)} {serve} with the revision before until replicas of the new one do"
    if rollout.draining:
        seconds = snapshot.pipe.spec.rollout.drain_seconds
        verb = _verb(rollout.draining, "completes", "complete")
        yield f"{_replicas(rollout.draining)} {verb} the answers begun there, for at most {seconds} s, and then goes"
    if not (awaited or rollout.outdated or rollout.draining):
        yield "pods that do not belong to the plan are being stopped"


def _deadline_words(late: list[int], snapshot: Snapshot, rollout: Rollout, found: Diagnosis) -> str:
    limits = snapshot.pipe.spec.rollout
    cause = summary(found.causes)
    why = "its members are starting or loading" if cause is None else cause.message
    room = ""
    if cause is not None and cause.reason in ("Unschedulable", "QuotaExceeded") and limits.max_surge:
        room = "; where there is no room for both, spec.rollout.maxSurge: 0 with maxUnavailable: 1 stops the old first"
    return bounded(
        f"{_replicas(late)} of the new revision {_verb(late, 'was', 'were')} not ready within "
        f"{limits.progress_deadline_seconds} s (spec.rollout.progressDeadlineSeconds), and "
        f"{_replicas(rollout.outdated)} {_verb(rollout.outdated, 'goes', 'go')} on serving with the revision before: "
        f"correct the spec, or set the old one again{room}. Cause: {why}"
    )


def _is_late(replica: tuple[Member, ...], snapshot: Snapshot, before: Mapping[str, Any]) -> bool:
    """Counted from when its last Deployment was made, or the weights were there, if that was later."""
    if all(member.ready for member in replica):
        return False
    weights = condition_in(before, "WeightsAvailable")
    if weights.get("status") != "True" and weights.get("reason") in FETCHING:
        return False
    made = [time_of(each.deployment["metadata"].get("creationTimestamp")) for each in replica if each.deployment]
    times: list[datetime] = [each for each in made if each is not None]
    there = time_of(weights.get("lastTransitionTime"))
    if there is not None and weights.get("status") == "True":
        times.append(there)
    limit = timedelta(seconds=snapshot.pipe.spec.rollout.progress_deadline_seconds)
    return bool(times) and max(times) + limit <= snapshot.now


def _trouble_of_the_outdated(snapshot: Snapshot, found: Diagnosis) -> tuple[str, str] | None:
    """Reason and message of what is wrong with replicas that serve until new ones do."""
    cause = summary(outdated_failures(found, snapshot))
    if cause is None:
        return None
    return cause.reason, bounded(f"of the revision before: {cause.message}")


def _replicas(numbers: Iterable[int]) -> str:
    found = list(numbers)
    if len(found) == 1:
        return f"replica {found[0]}"
    return f"replicas {', '.join(map(str, found[:-1]))} and {found[-1]}"


def _verb(numbers: Iterable[int], one: str, several: str) -> str:
    return one if len(list(numbers)) == 1 else several
