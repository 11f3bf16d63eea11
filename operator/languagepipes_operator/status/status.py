"""The whole status of a pipe: its conditions, its phase, its URL, what was resolved, who runs which layers.

Decided from one snapshot, one decision and the last status; the same input gives an equal status, so that an idle pipe
writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from languagepipes_api.names import LABEL_PIPE, LABEL_ROLE
from languagepipes_api.spec import LanguagePipe
from languagepipes_api.status import ConditionType, LanguagePipeStatus, Phase, StageStatus

from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.ownership import Member
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.status.amounts import of_bytes
from languagepipes_operator.status.condition_state import ConditionState
from languagepipes_operator.status.conditions import ORDER, condition_of, stalled, states_of
from languagepipes_operator.status.diagnosis import Diagnosis, diagnose
from languagepipes_operator.status.failures import bounded
from languagepipes_operator.status.history import history_of
from languagepipes_operator.status.outcome import Outcome
from languagepipes_operator.status.rolling_out import FETCHING

PROGRESS_STAYS = timedelta(seconds=10)


def status_of(
    snapshot: Snapshot,
    outcome: Outcome,
    previous: Mapping[str, Any] | None,
    *,
    progress_written: datetime | None = None,
) -> dict[str, Any]:
    """The whole `status` as the API server keeps it (camelCase, absent fields left out).

    snapshot: its Deployments as they are after this reconcile applied them: one that was changed and not seen by its
    controller yet counts as not rolled out, so that Ready never speaks for a spec that nothing runs. previous: the
    status as last read. progress_written: when `progress` was last written with another text; it stays for ten
    seconds, so a caller that remembers nothing (None) may write it at once.
    """
    found = diagnose(snapshot, outcome)
    before = dict(previous or {})
    generation = snapshot.pipe.metadata.generation or 0
    url = url_of(snapshot)
    states = states_of(snapshot, outcome, found, before, url=url)
    conditions = {
        kind: condition_of(kind, states[kind], before, generation=generation, now=snapshot.now)
        for kind in ORDER
        if kind in states
    }
    complete = _is_complete(snapshot, outcome, found, states)
    pods_ready = sum(all(member.ready for member in members) for members in found.stages)
    status = LanguagePipeStatus(
        observed_generation=generation,
        phase=_phase(snapshot, outcome, found, states),
        url=url,
        resolved_revision=resolved_revision(snapshot, outcome, before),
        plan_hash=None if found.plan is None else found.plan.hash,
        progress=progress_text(
            snapshot, before, written=progress_written, fetching=states["WeightsAvailable"].reason in FETCHING
        ),
        stages_ready=None if found.plan is None else f"{pods_ready if found.replicas else 0}/{len(found.plan.stages)}",
        replicas=found.existing,
        desired_replicas=snapshot.desired,
        ready_replicas=found.answering,
        updated_replicas=None if found.plan is None else sum(replica[-1].pod is not None for replica in found.replicas),
        # What it was, until every replica runs another and is ready.
        current_revision=outcome.revision if complete else before.get("currentRevision"),
        updated_revision=outcome.revision or before.get("updatedRevision"),
        selector=selector_of(snapshot.pipe),
        stages=stage_statuses(found),
        history=history_of(
            snapshot,
            outcome,
            before,
            ready=conditions["Ready"],
            progressing=conditions["Progressing"],
            complete=complete,
        ),
        conditions=tuple(conditions.values()),
    )
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def unreadable_status(
    raw: Manifest, problem: str, previous: Mapping[str, Any] | None, *, now: datetime
) -> dict[str, Any]:
    """The status of a resource that this operator cannot read: what it said before, and why nothing follows it now."""
    before = dict(previous or {})
    generation = int(raw["metadata"].get("generation") or 0)
    message = bounded(
        f"this operator cannot read the resource ({problem}): correct it; if the CRD is newer than the operator, "
        "upgrade the operator"
    )
    refused = ConditionState("False", "InvalidSpec", message)
    kept = {condition["type"]: dict(condition) for condition in before.get("conditions") or ()}
    found: dict[ConditionType, ConditionState] = {
        "Ready": refused,
        "Planned": refused,
        "Stalled": stalled("InvalidSpec", see="Ready"),
    }
    for kind, state in found.items():
        kept[kind] = condition_of(kind, state, before, generation=generation, now=now).model_dump(
            mode="json", by_alias=True, exclude_none=True
        )
    return {
        **before,
        "observedGeneration": generation,
        "phase": "Failed",
        "conditions": [kept[kind] for kind in ORDER if kind in kept],
    }


def _is_complete(
    snapshot: Snapshot, outcome: Outcome, found: Diagnosis, states: Mapping[ConditionType, ConditionState]
) -> bool:
    """Whether every replica that is wanted runs what is asked for. None is not: nothing shows that it would run."""
    whole = states["Ready"].status == "True" and found.ready_replicas >= snapshot.replicas > 0
    return whole and not found.replaced and outcome.revision is not None


def _phase(
    snapshot: Snapshot, outcome: Outcome, found: Diagnosis, states: Mapping[ConditionType, ConditionState]
) -> Phase:
    if outcome.paused:
        return "Paused"
    if snapshot.replicas == 0:
        return "Stopped"
    if states["Ready"].reason == "Idle":
        return "Idle"
    if states["Ready"].status == "True":
        return "Ready"
    if states["Ready"].reason == "Recovering":
        return "Recovering"
    if states["Degraded"].status == "True":
        return "Degraded"
    first = next(iter(found.causes), None)
    if first is not None and not first.waits and not found.accepting:
        return "Pending" if first.reason in ("Unschedulable", "QuotaExceeded") else "Failed"
    if not found.planned:
        return "Planning" if found.store.ready else "Pending"
    return "Fetching" if states["WeightsAvailable"].reason in FETCHING else "Starting"


def url_of(snapshot: Snapshot) -> str | None:
    """Where the API is reached inside the cluster, once its Service is the pipe's own."""
    name, namespace = snapshot.pipe.name, snapshot.pipe.namespace
    return f"http://{name}.{namespace}.svc/v1" if name in snapshot.children.services else None


def selector_of(pipe: LanguagePipe) -> str:
    """Selects the End Models' pods, for the scale subresource."""
    return f"{LABEL_PIPE}={pipe.name},{LABEL_ROLE}=end-model"


def resolved_revision(snapshot: Snapshot, outcome: Outcome, before: Mapping[str, Any]) -> str | None:
    """Of the plan for the spec; before there is one, of the plan that runs; before there is any, as the store says, or
    as it was while neither has spoken of this generation yet.
    """
    plan = outcome.plan or outcome.running
    if plan is not None:
        return plan.plan.model_revision
    if snapshot.store is not None and snapshot.store.facts is not None:
        return snapshot.store.facts.revision
    same = before.get("observedGeneration") == snapshot.pipe.metadata.generation
    return str(before["resolvedRevision"]) if same and before.get("resolvedRevision") else None


def progress_text(
    snapshot: Snapshot, before: Mapping[str, Any], *, written: datetime | None, fetching: bool
) -> str | None:
    """ "12.1/16.4 GiB" while the store fetches, else None. The last text stays for ten seconds after it was written."""
    report = snapshot.store
    last = before.get("progress")
    if report is None or not report.answered:
        # Not asked any more, or it missed a question: while it is fetching still, what it said last stands.
        return last if fetching else None
    if report.phase in ("Ready", "Failed") or not report.total_bytes:
        return None
    if last and written is not None and snapshot.now - written < PROGRESS_STAYS:
        return str(last)
    return of_bytes(report.done_bytes, report.total_bytes)


def stage_statuses(found: Diagnosis) -> tuple[StageStatus, ...]:
    """Of the plan that the replicas run, in the order of the layers."""
    if found.plan is None:
        return ()
    members = found.stages
    return tuple(
        StageStatus(
            name=stage.name,
            layers=str(stage.layers),
            nodes=_nodes(members[place]),
            ready_replicas=sum(member.ready for member in members[place]),
            restarts=sum(member.restarts for member in members[place]),
            weight_bytes=stage.weight_bytes,
        )
        for place, stage in enumerate(found.plan.stages)
    )


def _nodes(members: tuple[Member, ...]) -> tuple[str, ...]:
    """By replica; "" for one without a node before one that has one."""
    nodes = [member.node for member in members]
    while nodes and not nodes[-1]:
        nodes.pop()
    return tuple(nodes)
