"""Why a member's pod is not ready: its containers, its node, or how the pod before it ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from languagepipes_api.member_status import MemberStatus
from languagepipes_api.spec import PipeSpec

from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.ownership import Member, container_state, container_statuses, pod_condition
from languagepipes_operator.status.container_exits import container_ends
from languagepipes_operator.status.container_waits import container_waits
from languagepipes_operator.status.failures import Failure, failure, quoted


def pod_failures(
    member: Member,
    events: Sequence[Manifest],
    report: MemberStatus | None,
    *,
    spec: PipeSpec,
    now: datetime,
) -> Iterator[Failure]:
    """Of a member that is not ready, the most causal first. events: the pod's Warnings, newest first."""
    pod = member.pod
    if pod is None:
        yield from _gone(member)
        return
    if node_is_lost(pod):
        yield _node_lost(member, str(pod.get("spec", {}).get("nodeName", "")))
        return
    found = [*container_waits(member, pod, events, spec=spec, now=now), *container_ends(member, pod, events, now=now)]
    yield from found
    # A member that ends leaves the same text as its termination message.
    if not found and report is not None and report.state == "failed":
        yield failure(
            "MemberFailed",
            f"{member.title} failed and does not try again: {quoted(report.message) or 'it reports no cause'}",
        )
    yield from _gone(member)


def node_is_lost(pod: Manifest) -> bool:
    """Whether the node controller, and not the kubelet, took its readiness: then Ready is False without a reason
    (pkg/controller/util/node, MarkPodsNotReady).
    """
    status = pod.get("status", {})
    if status.get("phase") == "Unknown" or status.get("reason") == "NodeLost":
        return True
    ready = pod_condition(pod, "Ready")
    running = any(container_state(container, "running") for container in container_statuses(pod))
    return running and ready.get("status") in ("False", "Unknown") and not ready.get("reason")


def _node_lost(member: Member, node: str) -> Failure:
    if member.pod is not None and member.node not in ("", node):
        then = f"its pod is being started on node {member.node} instead"
    else:
        then = "30 seconds after Kubernetes marks it unreachable, its pod is started on another node that can run it"
    return failure(
        "NodeLost",
        f"{member.title}: node {node} does not answer; {then}: repair the node, or delete it from the cluster",
    )


def _gone(member: Member) -> Iterator[Failure]:
    """How the pod before this one ended."""
    for pod in member.past[:1]:
        status = pod.get("status", {})
        node = str(pod.get("spec", {}).get("nodeName", ""))
        said = quoted(str(status.get("message", "")))
        if status.get("phase") == "Failed" and status.get("reason") == "Evicted":
            yield failure(
                "Evicted",
                f"{member.title}: node {node} evicted its pod ({said}); a new pod is being started: raise the "
                "memory request in its template to what it needs, or add memory to the node",
            )
        elif status.get("phase") == "Failed" and status.get("reason"):
            yield failure(
                "PodRejected",
                f"{member.title}: node {node} refused its pod ({status['reason']}: {said}); a new pod is being started",
            )
        elif pod_condition(pod, "DisruptionTarget").get("reason") == "DeletionByTaintManager":
            yield _node_lost(member, node)
