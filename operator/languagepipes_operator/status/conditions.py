"""The seven conditions of a pipe: status, reason and message of each, from one snapshot and its diagnosis.

What is wrong comes from `diagnosis`; this module decides which condition shows it. It knows no other field of the
status.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from languagepipes_api.status import Condition, ConditionType

from languagepipes_operator.observe.ownership import (
    Member,
    container_state,
    container_statuses,
    pod_condition,
    time_of,
)
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.status.diagnosis import Diagnosis
from languagepipes_operator.status.failures import Failure, bounded, summary
from languagepipes_operator.status.outcome import Outcome
from languagepipes_operator.status.recovery import words_of

Status = Literal["True", "False", "Unknown"]
ORDER: tuple[ConditionType, ...] = (
    "Ready", "Planned", "WeightsAvailable", "StagesReady", "EndpointReady", "Progressing", "Degraded",
)  # fmt: skip

# WeightsAvailable's reasons while the store fetches, in the order of the store's phases, or cannot fetch for now.
FETCHING = ("Resolving", "Downloading", "Verifying", "Converting", "SourceUnreachable")
# A ring that is not up for longer than this after its last stage became ready counts as down.
_JOIN = timedelta(seconds=10)


@dataclass(frozen=True)
class ConditionState:
    """One condition without its times."""

    status: Status
    reason: str
    message: str


def condition_in(status: Mapping[str, Any] | None, kind: str) -> dict[str, Any]:
    """That condition of a dumped status, or an empty mapping."""
    for condition in (status or {}).get("conditions") or ():
        if condition.get("type") == kind:
            return dict(condition)
    return {}


def states_of(
    snapshot: Snapshot, outcome: Outcome, found: Diagnosis, before: Mapping[str, Any], *, url: str | None
) -> dict[ConditionType, ConditionState]:
    """All seven. before: the status as last read. url: the pipe's, once there is a Service."""
    weights = _weights_available(snapshot, found, before)
    stages = _stages_ready(snapshot, found, weights)
    ready = _ready(snapshot, outcome, found, weights, stages, before)
    return {
        "Ready": ready,
        "Planned": _planned(found, weights),
        "WeightsAvailable": weights,
        "StagesReady": stages,
        "EndpointReady": _endpoint_ready(found, ready, url),
        "Progressing": _progressing(snapshot, outcome, found, ready),
        "Degraded": _degraded(snapshot, found, ready, before),
    }


def _planned(found: Diagnosis, weights: ConditionState) -> ConditionState:
    if found.of_plan:
        return _of(found.of_plan[0])
    plan = found.plan
    if plan is None:
        cause = summary((*found.of_names, *found.of_store))
        if cause is not None:
            return ConditionState("Unknown", cause.reason, cause.message)
        return ConditionState("Unknown", weights.reason, weights.message)
    sequences = "1 sequence" if plan.max_sequences == 1 else f"{plan.max_sequences} sequences"
    return ConditionState(
        "True",
        "Planned",
        bounded(
            f"{plan.layer_count} layers are split over {_count(len(plan.stages), 'stage')} and the End Model; "
            f"{sequences} of {plan.max_context_length} tokens fit at the same time, limited by "
            f"{plan.kv_limited_by}; the slowest member is {plan.slowest_station}"
        ),
    )


def _weights_available(snapshot: Snapshot, found: Diagnosis, before: Mapping[str, Any]) -> ConditionState:
    report, store = snapshot.store, found.store
    cause = summary(found.of_store)
    if cause is not None:
        return _of(cause)
    if report is not None and report.answered:
        if report.phase == "Ready":
            return ConditionState(
                "True", "WeightsAvailable", "the weights store has verified every file and serves them"
            )
        return _fetching(snapshot, report.phase)
    last = condition_in(before, "WeightsAvailable")
    # The operator does not ask the store of a Ready pipe, and a busy store may not answer: what it had, it still has.
    if store.ready and last.get("status") == "True":
        return ConditionState("True", str(last["reason"]), str(last["message"]))
    if store.ready and found.ready_replicas:
        return ConditionState(
            "True", "WeightsAvailable", "every member has loaded its weights, and the weights store is running"
        )
    if store.pod is not None and last.get("reason") in FETCHING and last.get("status") == "False":
        return ConditionState("False", str(last["reason"]), str(last["message"]))
    if store.ready:
        return ConditionState(
            "Unknown", "WaitingForFacts", "the weights store is running and has not reported its files yet"
        )
    if store.pod is None:
        return ConditionState("False", "StoreStarting", "the operator is creating the pod of the weights store")
    where = f" on node {store.node}" if store.node else ""
    return ConditionState("False", "StoreStarting", f"the pod of the weights store is starting{where}")


def _fetching(snapshot: Snapshot, phase: str) -> ConditionState:
    source = snapshot.pipe.spec.model.source
    doing = {
        "Resolving": f"the weights store is resolving the revision of {source} and listing its files",
        "Downloading": f"the weights store is downloading {source}; status.progress shows how much is done",
        "Verifying": f"the weights store is verifying the files of {source} (SHA-256)",
        "Converting": f"the weights store is converting {source} to safetensors",
    }
    if phase not in doing:
        return ConditionState("False", "WaitingForFacts", f"the weights store is reading the file headers of {source}")
    return ConditionState("False", phase, doing[phase])


def _stages_ready(snapshot: Snapshot, found: Diagnosis, weights: ConditionState) -> ConditionState:
    if snapshot.pipe.spec.replicas == 0:
        return _scaled_to_zero()
    if found.plan is None:
        return ConditionState(
            "Unknown", "NotPlanned", "there is no plan yet, so there are no stages: see the condition Planned"
        )
    missing = [member for members in found.stages for member in members if not member.ready]
    replicas = len(found.replicas)
    if not missing:
        on = "" if replicas == 1 else f" of {replicas} replicas"
        which = f"all {len(found.stages)} stages" if len(found.stages) > 1 else "the only stage"
        return ConditionState("True", "StagesReady", f"{which}{on}: layers loaded, accepting connections")
    cause = summary(found.of_stages)
    if cause is not None:
        return _of(cause)
    if weights.status == "False" and weights.reason != "StoreStarting":
        return ConditionState("False", weights.reason, weights.message)
    names = ", ".join(member.title for member in missing[:4]) + (" and others" if len(missing) > 4 else "")
    return ConditionState(
        "False", "StagesStarting", bounded(f"{names}: not ready yet (being scheduled, starting, or loading weights)")
    )


def _ready(
    snapshot: Snapshot,
    outcome: Outcome,
    found: Diagnosis,
    weights: ConditionState,
    stages: ConditionState,
    before: Mapping[str, Any],
) -> ConditionState:
    asked = snapshot.pipe.spec.replicas
    if asked == 0:
        return _scaled_to_zero()
    blocked = summary((*found.of_names, *found.of_plan))
    if blocked is None and found.plan is not None and found.ready_replicas == asked:
        plan = found.plan.hash
        if asked == 1:
            return ConditionState("True", "Ready", f"1 replica runs the plan {plan}, and its ring health check passed")
        message = f"all {asked} replicas run the plan {plan}, and their ring health checks passed"
        return ConditionState("True", "Ready", message)
    if found.recovering and not found.needing_a_person:
        return _recovering(snapshot, found)
    cause = summary(found.causes)
    if cause is not None:
        return _of(cause)
    if outcome.paused and found.plan is None:
        return ConditionState(
            "False", "Paused", "spec.paused is true and there is no plan: set spec.paused to false to continue"
        )
    if found.plan is None:
        return ConditionState("False", weights.reason, weights.message)
    if stages.status != "True":
        return ConditionState("False", stages.reason, stages.message)
    silent = [replica[-1] for replica in found.replicas if not replica[-1].ready]
    waiting = [end.title for end in silent]
    rings = [replica for replica in found.replicas if not replica[-1].ready and not _joins(replica, snapshot.now)]
    if _was_ready(before, snapshot) and any(_went_down(replica[-1], before) for replica in rings):
        return ConditionState(
            "False",
            "RingDown",
            bounded(
                f"{', '.join(waiting)}: every stage is ready, but the ring health check no longer passes. The "
                "End Model tries again without limit: read the members' logs, and check the namespace's NetworkPolicies"
            ),
        )
    return ConditionState(
        "False",
        "JoiningRing",
        bounded(f"{', '.join(waiting)}: starting, or waiting for the first ring health check; the stages are ready"),
    )


def _recovering(snapshot: Snapshot, found: Diagnosis) -> ConditionState:
    """What is awaited; and why, where a member reports a cause that passes."""
    words = words_of(found.recovering, snapshot)
    cause = summary(found.of_stages)
    return ConditionState(
        "False", "Recovering", bounded(words if cause is None else f"{words}. Cause: {cause.message}")
    )


def _endpoint_ready(found: Diagnosis, ready: ConditionState, url: str | None) -> ConditionState:
    if not found.accepting:
        return ConditionState("False", ready.reason, ready.message)
    where, answering = url or "no Service yet", found.answering
    if not answering:
        return ConditionState(
            "True", "EndpointReady", bounded(f"requests are accepted at {where}, and wait: {ready.message}")
        )
    answers = "1 replica answers" if answering == 1 else f"{answering} replicas answer"
    return ConditionState("True", "EndpointReady", f"{answers} at {where}")


def _progressing(snapshot: Snapshot, outcome: Outcome, found: Diagnosis, ready: ConditionState) -> ConditionState:
    refused = summary(found.non_blocking)
    if refused is not None:
        return _of(refused)
    if outcome.paused:
        return ConditionState(
            "False",
            "Paused",
            "spec.paused is true: the operator changes no object of the pipe; set it to false to continue",
        )
    if found.replaced or found.existing > snapshot.pipe.spec.replicas:
        stuck = summary(cause for cause in found.causes if not cause.waits)
        if stuck is not None:
            return _of(stuck)
        return ConditionState("True", "RollingOut", "pods that do not belong to the plan are being replaced or stopped")
    if ready.status == "True" or ready.reason == "ScaledToZero":
        return ConditionState("False", "Complete", "the operator has nothing left to do")
    first = next(iter(found.causes), None)
    if first is not None and not first.waits:
        return ConditionState("False", ready.reason, ready.message)
    return ConditionState("True", ready.reason, ready.message)


def _degraded(snapshot: Snapshot, found: Diagnosis, ready: ConditionState, before: Mapping[str, Any]) -> ConditionState:
    asked = snapshot.pipe.spec.replicas
    if ready.status == "True" or asked == 0:
        return ConditionState("False", "AsAsked", "every replica that spec.replicas asks for is ready")
    # It is a rollout until this generation was Ready once; after that, a missing replica is a failure.
    if not _was_ready(before, snapshot):
        return ConditionState(
            "False", "RollingOut", "the replicas of this spec are being started: see the condition Ready"
        )
    verb = "is" if found.ready_replicas == 1 else "are"
    return ConditionState(
        "True",
        "FewerReplicas",
        bounded(f"{found.ready_replicas} of {asked} replicas {verb} ready: {ready.message}"),
    )


def _was_ready(before: Mapping[str, Any], snapshot: Snapshot) -> bool:
    """Whether this generation was Ready once: it still is, or it is Degraded since."""
    generation = snapshot.pipe.metadata.generation or 0
    return any(
        last.get("status") == "True" and last.get("observedGeneration") == generation
        for last in (condition_in(before, "Ready"), condition_in(before, "Degraded"))
    )


def _joins(replica: Sequence[Member], now: datetime) -> bool:
    """Whether a stage became ready only just now: then the ring is about to be up again."""
    for stage in replica[:-1]:
        since = None if stage.pod is None else time_of(pod_condition(stage.pod, "Ready").get("lastTransitionTime"))
        if since is not None and now - since < _JOIN:
            return True
    return False


def _went_down(end: Member, before: Mapping[str, Any]) -> bool:
    """Whether its container ran already when Ready last turned: then it had a ring, and lost it."""
    turned = time_of(condition_in(before, "Ready").get("lastTransitionTime"))
    if end.pod is None or turned is None:
        return False
    began = [time_of(container_state(status, "running").get("startedAt")) for status in container_statuses(end.pod)]
    return any(since is not None and since < turned for since in began)


def _scaled_to_zero() -> ConditionState:
    return ConditionState(
        "False", "ScaledToZero", "spec.replicas is 0, so no replica runs: raise it to serve the model again"
    )


def _of(cause: Failure) -> ConditionState:
    return ConditionState("False", cause.reason, cause.message)


def condition_of(
    kind: ConditionType, state: ConditionState, before: Mapping[str, Any], *, generation: int, now: datetime
) -> Condition:
    """With its times: `lastTransitionTime` stays while the status does."""
    last = condition_in(before, kind)
    since: Any = now.astimezone(UTC).replace(microsecond=0)
    if last.get("status") == state.status and last.get("lastTransitionTime"):
        since = last["lastTransitionTime"]
    return Condition(
        type=kind,
        status=state.status,
        observed_generation=generation,
        last_transition_time=since,
        reason=state.reason,
        message=state.message,
    )


def _count(number: int, thing: str) -> str:
    return f"1 {thing}" if number == 1 else f"{number} {thing}s"
