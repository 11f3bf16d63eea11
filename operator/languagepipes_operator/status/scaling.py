"""The condition ScalingActive: who decides the number of replicas, and from what."""

from __future__ import annotations

from languagepipes_operator.observe.scale_writes import scale_writer
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.status.condition_state import ConditionState
from languagepipes_operator.status.failures import bounded


def scaling_active(snapshot: Snapshot) -> ConditionState | None:
    """None without autoscaling."""
    limits, desired = snapshot.pipe.spec.autoscaling, snapshot.desired
    if limits is None or desired is None:
        return None
    if snapshot.load_unknown:
        return ConditionState(
            "False",
            "LoadUnknown",
            "an End Model does not answer the operator on its telemetry port (9090), so the number of replicas does "
            "not fall: check that NetworkPolicies allow connections from the operator's namespace",
        )
    wanted = "1 replica is" if desired == 1 else f"{desired} replicas are"
    words = (
        f"{wanted} wanted by the requests that End Models report (at least {limits.min_replicas}, at most "
        f"{limits.max_replicas}, one for each {limits.target_requests_per_replica} requests)"
    )
    writer = scale_writer(snapshot.raw)
    if writer is not None:
        return ConditionState(
            "True",
            "ReplicasIgnored",
            bounded(
                f"{words}; spec.replicas, which {writer} set through the scale subresource, is not used: delete the "
                "HorizontalPodAutoscaler of this pipe, or remove spec.autoscaling"
            ),
        )
    return ConditionState("True", "Autoscaling", words)
