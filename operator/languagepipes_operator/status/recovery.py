"""Replicas that let requests wait until they are whole again: which they are, and what each of them awaits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from languagepipes_api.member_status import MemberStatus
from languagepipes_api.plan import Plan

from languagepipes_operator.observe.endpoint import takes_requests
from languagepipes_operator.observe.ownership import Member, container_state, container_statuses, name_of, was_ready
from languagepipes_operator.observe.ring_probe import ring_is_down
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.status.amounts import of_bytes
from languagepipes_operator.status.failures import quoted

# So often the message changes at most while a stage loads: each change is a write of the status.
_PROGRESS_STEPS = 10


@dataclass(frozen=True)
class Recovery:
    """A replica that takes requests, so that they wait there, and whose ring is not whole.

    awaits: "stage gpu to load its weights (2.9/4.2 GiB)". pauses: whether requests wait; else the ring is up again.
    """

    replica: int
    awaits: str
    pauses: bool = True


def recoveries(replicas: Sequence[tuple[Member, ...]], plan: Plan | None, snapshot: Snapshot) -> tuple[Recovery, ...]:
    """Of `replicas`, each its stages in order and its End Model last, those that recover."""
    if plan is None:
        return ()
    found = (_recovery(replica, plan, snapshot) for replica in replicas)
    return tuple(each for each in found if each is not None)


def words_of(found: Sequence[Recovery], snapshot: Snapshot) -> str:
    """What is awaited, and for how long requests wait."""
    replicas = "; ".join(f"replica {each.replica} is recovering: waiting for {each.awaits}" for each in found)
    if not any(each.pauses for each in found):
        return replicas
    seconds = snapshot.pipe.spec.recovery.max_wait_seconds
    return f"{replicas}; {f'requests wait up to {seconds} s' if seconds else 'requests do not wait for it'}"


def _recovery(replica: tuple[Member, ...], plan: Plan, snapshot: Snapshot) -> Recovery | None:
    end, stages = replica[-1], replica[:-1]
    if end.pod is None or not end.rolled_out or not takes_requests(end.pod, snapshot):
        return None
    report = _report(end, snapshot)
    joined = report is not None and not ring_is_down(report)
    lost = [
        f"stage {stage.name} {_awaited(member, _report(member, snapshot))}"
        for stage, member in zip(plan.stages, stages, strict=True)
        if not member.ready and not (joined and _may_be_in_the_ring(member))
    ]
    if lost:
        more = f" and {len(lost) - 3} more stages" if len(lost) > 3 else ""
        return Recovery(end.replica, ", ".join(lost[:3]) + more)
    if joined and not end.ready and was_ready(end.pod):
        return Recovery(end.replica, "the End Model's readiness probe to pass", pauses=False)
    if report is None or joined:
        return None
    why = f" ({quoted(report.ring_error)})" if report.ring_error else ""
    return Recovery(end.replica, f"the ring health check to pass{why}")


def _may_be_in_the_ring(stage: Member) -> bool:
    """Of a stage that is not ready: if it was, and the ring is up, its kubelet's probe is late or failed once. But not
    while the pod before it is still ending, since the ring may be up through that one; nor if it never was ready, since
    a pod that was deleted by force is not seen ending.
    """
    ending = any(pod["metadata"].get("deletionTimestamp") for pod in stage.past)
    return stage.rolled_out and not ending and stage.pod is not None and was_ready(stage.pod)


def _runs(member: Member) -> bool:
    pod = member.pod
    return pod is not None and any(container_state(each, "running") for each in container_statuses(pod))


def _report(member: Member, snapshot: Snapshot) -> MemberStatus | None:
    return None if member.pod is None else snapshot.members.get(name_of(member.pod))


def _awaited(member: Member, report: MemberStatus | None) -> str:
    """What it is to do next, as "to load its weights"."""
    if member.pod is None or not member.rolled_out:
        return "to get a new pod"
    if not member.node:
        return "to be scheduled"
    if not _runs(member):
        return "to start"
    if report is None or report.state in ("starting", "failed"):
        return "to become ready"
    if report.state == "waiting":
        return f"({quoted(report.message)})" if report.message else "to become ready"
    if report.state == "loading" and report.total_bytes:
        step = max(1, report.total_bytes // _PROGRESS_STEPS)
        return f"to load its weights ({of_bytes(report.loaded_bytes - report.loaded_bytes % step, report.total_bytes)})"
    return "to load its weights" if report.state == "loading" else "to become ready"
