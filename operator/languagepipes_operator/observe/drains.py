"""Which nodes are being emptied: by `kubectl cordon` and `kubectl drain`, or by an autoscaler that is to delete them.

An eviction that a PodDisruptionBudget refuses leaves no trace, so a drain is seen by the mark on the node. Pure.
"""

from __future__ import annotations

from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.planning.nodes import Taint

UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
# `kubectl cordon`, and with it `kubectl drain` (https://kubernetes.io/docs/reference/labels-annotations-taints/);
# the cluster autoscaler, before it evicts (kubernetes/autoscaler, cluster-autoscaler/utils/taints: ToBeDeletedTaint);
# Karpenter since v1, and before (https://karpenter.sh/docs/concepts/disruption/, "karpenter.sh/disrupted:NoSchedule").
DRAIN_TAINTS = frozenset(
    {UNSCHEDULABLE, "ToBeDeletedByClusterAutoscaler", "karpenter.sh/disrupted", "karpenter.sh/disruption"}
)


def drain_taints(node: Manifest) -> tuple[Taint, ...]:
    """The taints by which a core/v1 Node is being emptied; empty if it is not. A cordoned one counts as tainted: the
    node lifecycle controller adds that taint a moment later.
    """
    spec = node.get("spec") or {}
    found = [
        Taint(str(taint["key"]), str(taint.get("value") or ""), str(taint["effect"]))
        for taint in spec.get("taints") or ()
        if taint.get("key") in DRAIN_TAINTS and taint.get("effect") in ("NoSchedule", "NoExecute")
    ]
    if spec.get("unschedulable") and all(taint.key != UNSCHEDULABLE for taint in found):
        found.append(Taint(UNSCHEDULABLE))
    return tuple(found)
