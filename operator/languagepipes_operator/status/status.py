"""The fields of a pipe's status that are no conditions: its URL, what was resolved, who runs which layers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from languagepipes_api.names import LABEL_PIPE, LABEL_ROLE
from languagepipes_api.quantity import format_bytes
from languagepipes_api.spec import LanguagePipe
from languagepipes_api.status import StageStatus

from languagepipes_operator.observe.ownership import Member
from languagepipes_operator.observe.snapshot import Decision, Snapshot
from languagepipes_operator.status.diagnosis import Diagnosis

PROGRESS_STAYS = timedelta(seconds=10)


def url_of(snapshot: Snapshot) -> str | None:
    """Where the API is reached inside the cluster, once its Service is the pipe's own."""
    name, namespace = snapshot.pipe.name, snapshot.pipe.namespace
    return f"http://{name}.{namespace}.svc/v1" if name in snapshot.children.services else None


def selector_of(pipe: LanguagePipe) -> str:
    """Selects the End Models' pods, for the scale subresource."""
    return f"{LABEL_PIPE}={pipe.name},{LABEL_ROLE}=end-model"


def resolved_revision(snapshot: Snapshot, decision: Decision, before: Mapping[str, Any]) -> str | None:
    """As planned, as the store says, or as it was while neither has spoken of this generation yet."""
    if decision.plan is not None:
        return decision.plan.plan.model_revision
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


def of_bytes(done: int, total: int) -> str:
    """Both in the unit of `total`, named once."""
    amount, unit = format_bytes(total).split()
    if done >= total:
        return f"{amount}/{amount} {unit}"
    power = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB").index(unit)
    # Rounded down: nothing is said to be there before it is.
    tenths = done * 10 // 1024**power
    digits = str(tenths // 10) if unit == "B" else f"{tenths // 10}.{tenths % 10}"
    return f"{digits.removesuffix('.0')}/{amount} {unit}"


def stage_statuses(found: Diagnosis) -> tuple[StageStatus, ...]:
    """Of the plan in force, in the order of the layers."""
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
