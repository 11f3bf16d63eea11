"""Pipes in the middle of something, as Kubernetes would show them: a rollout, autoscaling, idle, woken."""

from __future__ import annotations

from typing import Any

from languagepipes_api.member_status import MemberStatus
from languagepipes_api.names import LABEL_PLAN, LABEL_REPLICA

from support.cluster_state import ClusterState, at, later, unready

WAITS = MemberStatus(state="ready", ring_ready=False, recovering=True, running=0, waiting=3, ring_error="no stage")


def autoscaled(least: int = 1, most: int = 4, **more: Any) -> ClusterState:
    cluster = ClusterState.ready({"autoscaling": {"minReplicas": least, "maxReplicas": most}})
    cluster.desired = 1
    for name, value in more.items():
        setattr(cluster, name, value)
    return cluster


def without_stages(cluster: ClusterState, *, ready: bool = False) -> ClusterState:
    """The End Model's ring is down, and the Service leads to it."""
    for stage in (1, 2, 3):
        cluster.drop("stage", 0, stage)
    pod = cluster.pod("end-model")
    for condition in pod["status"]["conditions"]:
        if condition["type"] == "Ready" and not ready:
            condition["status"] = "False"
    cluster.publish_unready()
    cluster.members[pod["metadata"]["name"]] = WAITS
    return cluster


def idle() -> ClusterState:
    return without_stages(autoscaled(0, desired=0, idle=True))


def rollout(*, ready: bool = False, age_seconds: float = 60, generation: int = 2, **spec: Any) -> ClusterState:
    """Replica 0 serves with the revision before; replica 1 is the new one."""
    cluster = ClusterState.ready(spec, generation=generation)
    for thing in [*cluster.pods.values(), *cluster.deployments.values()]:
        if LABEL_PLAN in thing["metadata"]["labels"]:
            thing["metadata"]["labels"][LABEL_PLAN] = "0" * 16
    cluster.add_replica(1)
    cluster.updated, cluster.outdated = (1,), (0,)
    for thing in [*cluster.pods.values(), *cluster.deployments.values()]:
        if thing["metadata"]["labels"].get(LABEL_REPLICA) == "1":
            thing["metadata"]["creationTimestamp"] = at(seconds=age_seconds)
    if not ready:
        for role, stage in (("stage", 1), ("stage", 2), ("stage", 3), ("end-model", 0)):
            unready(cluster.pod(role, 1, stage))
    return cluster


def status_before_rollout() -> dict[str, Any]:
    """The status from before the change, whose conditions turned long ago."""
    return later(ClusterState.ready(), seconds=-9000).status()
