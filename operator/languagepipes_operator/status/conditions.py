"""The conditions of a pipe: status, reason and message of each, from one snapshot and its diagnosis.

What is wrong comes from `diagnosis`; this module decides which condition shows it. It knows no other field of the
status.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from languagepipes_operator.status.condition_state import ConditionState, condition_in
from languagepipes_operator.status.diagnosis import Diagnosis
from languagepipes_operator.status.drains import being_emptied, words_of_evictions
from languagepipes_operator.status.failures import Failure, bounded, summary
from languagepipes_operator.status.outcome import Outcome
from languagepipes_operator.status.recovery import words_of
from languagepipes_operator.status.rolling_out import FETCHING, rolling_out
from languagepipes_operator.status.scaling import scaling_active

ORDER: tuple[ConditionType, ...] = (
    "Ready", "Planned", "WeightsAvailable", "StagesReady", "EndpointReady", "Progressing", "Degraded",
    "Stalled", "ScalingActive",
)  # fmt: skip

# A ring that is not up for longer than this after its last stage became ready counts as down.
_JOIN = timedelta(seconds=10)


def states_of(
    snapshot: Snapshot, outcome: Outcome, found: Diagnosis, before: Mapping[str, Any], *, url: str | None
) -> dict[ConditionType, ConditionState]:
    """All; ScalingActive with autoscaling alone, Stalled where it holds. before: the status as last read. url: the
    pipe's, once there is a Service.
    """
    weights = _weights_available(snapshot, found, before)
    stages = _idle() if outcome.idle else _stages_ready(snapshot, found, weights)
    ready = _ready(snapshot, outcome, found, weights, stages, before)
    scaling = scaling_active(snapshot)
    progressing = _progressing(snapshot, outcome, found, ready, before)
    stalled = _stalled(snapshot, ready, progressing)
    return {
        "Ready": ready,
        "Planned": _planned(outcome, found, weights),
        "WeightsAvailable": weights,
        "StagesReady": stages,
        "EndpointReady": _endpoint_ready(found, ready, url),
        "Progressing": progressing,
        "Degraded": _degraded(snapshot, found, ready, before),
        **({} if stalled is None else {"Stalled": stalled}),
        **({} if scaling is None else {"ScalingActive": scaling}),
    }


def _planned(outcome: Outcome, found: Diagnosis, weights: ConditionState) -> ConditionState:
    if found.of_plan:
        return _of(found.of_plan[0])
    plan = found.plan
    if plan is None or not found.planned:
        if outcome.paused:
            return ConditionState(
                "Unknown", "Paused", "spec.paused is true, so no plan is made for the spec: set it to false to continue"
            )
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
    if store.ready and last.get("status") == "True" and _is_of_this_store(last, store):
        return ConditionState("True", str(last["reason"]), str(last["message"]))
    if store.ready and found.planned and found.ready_replicas:
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


def _is_of_this_store(last: Mapping[str, Any], store: Member) -> bool:
    """Whether the condition turned True since the store exists: before, it spoke of the store of another model."""
    turned = time_of(last.get("lastTransitionTime"))
    made = None if store.deployment is None else time_of(store.deployment["metadata"].get("creationTimestamp"))
    return turned is None or made is None or made <= turned


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
    if snapshot.replicas == 0 and not found.replicas:
        return _scaled_to_zero(found)
    if found.plan is None:
        return ConditionState(
            "Unknown", "NotPlanned", "there is no plan yet, so there are no stages: see the condition Planned"
        )
    missing = [member for members in found.stages for member in members if not member.ready]
    replicas = len(found.replicas)
    short = summary(found.of_growth)
    if not missing and short is not None:
        return _of(short)
    if not missing and replicas < snapshot.replicas and not snapshot.pipe.spec.paused:
        return ConditionState(
            "False",
            "RollingOut",
            f"{replicas} of {_count(snapshot.replicas, 'replica')} of this revision can be made before an "
            "earlier replica is gone (spec.rollout.maxSurge): see the condition Progressing",
        )
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
    asked = snapshot.replicas
    blocked = summary((*found.of_names, *found.of_plan))
    if blocked is None and outcome.held_back:
        return ConditionState(
            "False",
            "Paused",
            bounded(
                "spec.paused is true, and the spec is not applied. Once spec.paused is false: "
                f"{', '.join(outcome.held_back)}"
            ),
        )
    if asked == 0 and blocked is None and found.planned:
        return _scaled_to_zero(found, done="True")
    if blocked is None and outcome.idle and found.planned:
        return _idle("True" if found.accepting else "False")
    if asked and blocked is None and found.plan is not None and found.planned and found.ready_replicas >= asked:
        plan = found.plan.hash
        if asked == 1:
            return ConditionState("True", "Ready", f"1 replica runs the plan {plan}, and its ring health check passed")
        message = f"all {asked} replicas run the plan {plan}, and their ring health checks passed"
        return ConditionState("True", "Ready", message)
    if blocked is None and _is_added_to(snapshot, found, before):
        return ConditionState(
            "True",
            "ScalingUp",
            f"{found.ready_replicas} of {asked} replicas are ready, and the others are being started: autoscaling asks "
            "for them",
        )
    if found.recovering and not found.needing_a_person:
        return _recovering(snapshot, found, waking=_is_waking(before))
    cause = summary(found.causes)
    if cause is not None:
        return _of(cause)
    if not found.planned:
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


def _is_waking(before: Mapping[str, Any]) -> bool:
    """Whether stages are started because a request waits, and not because one was lost. before: the last status."""
    return condition_in(before, "Ready").get("reason") in ("Idle", "Waking")


def _is_added_to(snapshot: Snapshot, found: Diagnosis, before: Mapping[str, Any]) -> bool:
    """Whether autoscaling is adding replicas to enough that are ready: those that are missing never were."""
    limits = snapshot.pipe.spec.autoscaling
    if limits is None or not found.planned or condition_in(before, "Ready").get("status") != "True":
        return False
    enough = found.ready_replicas >= max(1, limits.min_replicas)
    # That there is no room for one more is no fault of those that there are: Progressing tells it.
    broken = [each for each in found.needing_a_person if each not in found.of_growth and each.reason != "Unschedulable"]
    return enough and not (found.recovering or broken or _was_lost(found))


def _recovering(snapshot: Snapshot, found: Diagnosis, *, waking: bool) -> ConditionState:
    """What is awaited; and why, where a member reports a cause that passes."""
    words = words_of(found.recovering, snapshot)
    if waking:
        words = f"a request came, and the stages are being started again: {words}"
    cause = summary(found.of_stages)
    return ConditionState(
        "False",
        "Waking" if waking else "Recovering",
        bounded(words if cause is None else f"{words}. Cause: {cause.message}"),
    )


def _endpoint_ready(found: Diagnosis, ready: ConditionState, url: str | None) -> ConditionState:
    if not found.accepting:
        return ConditionState("False", ready.reason, ready.message)
    where, answering = url or "no Service yet", found.answering
    if ready.reason == "Idle":
        return ConditionState("True", "Idle", f"requests are accepted at {where}; the first one starts the stages")
    if not answering:
        return ConditionState(
            "True", "EndpointReady", bounded(f"requests are accepted at {where}, and wait: {ready.message}")
        )
    answers = "1 replica answers" if answering == 1 else f"{answering} replicas answer"
    return ConditionState("True", "EndpointReady", f"{answers} at {where}")


def _progressing(
    snapshot: Snapshot, outcome: Outcome, found: Diagnosis, ready: ConditionState, before: Mapping[str, Any]
) -> ConditionState:
    refused = summary(found.non_blocking)
    if refused is not None:
        return _of(refused)
    if outcome.paused:
        return ConditionState(
            "False",
            "Paused",
            bounded(
                "; ".join(
                    [
                        "spec.paused is true: the operator changes no object of the pipe; set it to false to continue",
                        *words_of_evictions(outcome.drains),
                    ]
                )
            ),
        )
    emptied = being_emptied(snapshot, outcome, found)
    if emptied is not None:
        return emptied
    rolling = rolling_out(snapshot, outcome, found, before)
    if rolling is not None:
        return rolling
    if ready.reason == "ScalingUp":
        short = next((each for each in found.causes if not each.waits), None)
        return ConditionState("True", ready.reason, ready.message) if short is None else _of(short)
    if ready.status == "True" or ready.reason == "ScaledToZero":
        return ConditionState("False", "Complete", "the operator has nothing left to do")
    first = next(iter(found.causes), None)
    if first is not None and not first.waits:
        return ConditionState("False", ready.reason, ready.message)
    return ConditionState("True", ready.reason, ready.message)


def _stalled(snapshot: Snapshot, ready: ConditionState, progressing: ConditionState) -> ConditionState | None:
    """As kstatus (sigs.k8s.io/cli-utils, pkg/kstatus) defines it: True where the operator waits for somebody to change
    something, and else not there. A replica that recovers is none, nor a node that the cluster autoscaler is to add.
    """
    if ready.status == "True" or ready.reason == "ScaledToZero" or progressing.status == "True":
        return None
    if progressing.reason in ("Complete", "Paused"):
        return None
    if progressing.reason == "Unschedulable" and snapshot.pipe.spec.placement.allow_pending:
        return None
    return stalled(progressing.reason, see="Progressing" if progressing.reason != ready.reason else "Ready")


def stalled(reason: str, *, see: ConditionType) -> ConditionState:
    """see: the condition whose message has the remedy; it is not repeated."""
    return ConditionState("True", reason, f"nothing goes on until this is mended: see the condition {see}")


def _degraded(snapshot: Snapshot, found: Diagnosis, ready: ConditionState, before: Mapping[str, Any]) -> ConditionState:
    asked = snapshot.replicas
    if snapshot.desired is not None and (ready.status == "True" or ready.reason in ("Waking", "Idle")):
        return ConditionState("False", "AsAsked", "every replica that autoscaling asks for is ready, or being started")
    if ready.status == "True" or asked == 0:
        return ConditionState("False", "AsAsked", "every replica that spec.replicas asks for is ready")
    if not found.planned and found.ready_replicas >= asked:
        return ConditionState(
            "False", "AsAsked", "every replica that spec.replicas asks for is ready, of an older plan"
        )
    # It is a rollout until this generation was Ready once; after that, a missing replica is a failure. It stays one
    # when the spec is edited, until enough replicas are ready again.
    degraded = condition_in(before, "Degraded").get("status") == "True"
    if not degraded and not _was_ready(before, snapshot) and not (not found.planned and _was_lost(found)):
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


def _was_lost(found: Diagnosis) -> bool:
    """Whether a replica is not ready of whose members each was once (a Deployment's condition keeps that)."""
    return any(
        not all(member.ready for member in replica)
        for replica in found.replicas
        if all(
            member.deployment is not None
            and pod_condition(member.deployment, "Progressing").get("reason") == "NewReplicaSetAvailable"
            for member in replica
        )
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


def _idle(status: Literal["True", "False"] = "False") -> ConditionState:
    return ConditionState(
        status,
        "Idle",
        "no request came within spec.autoscaling.scaleDownDelaySeconds, so the stages are stopped, and the End Model "
        "stays: "
        + ("a request waits there until they are back" if status == "True" else "see the condition EndpointReady"),
    )


def _scaled_to_zero(found: Diagnosis, *, done: Literal["True", "False"] = "False") -> ConditionState:
    """done: the status once no replica is left."""
    if found.existing:
        stopping = "1 replica is" if found.existing == 1 else f"{found.existing} replicas are"
        return ConditionState("False", "ScaledToZero", f"spec.replicas is 0: {stopping} being stopped")
    return ConditionState(
        done, "ScaledToZero", "spec.replicas is 0, so no replica runs: raise it to serve the model again"
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
