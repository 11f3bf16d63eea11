"""Which live children are no longer wanted. Pure. Secrets are left out: those follow the decision's identities."""

from __future__ import annotations

from collections.abc import Iterable

from languagepipes_api.names import LABEL_ROLE

from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Children


def surplus_children(wanted: Iterable[Manifest], children: Children, *, planned: bool) -> list[Manifest]:
    """Those that are not among `wanted`, Deployments first. Without a plan only what belongs to the store: an older
    plan's replicas stay.
    """
    asked = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in wanted}
    found: list[Manifest] = []
    for kind, items in (
        ("Deployment", children.deployments),
        ("PodDisruptionBudget", children.budgets),
        ("NetworkPolicy", children.policies),
        ("PersistentVolumeClaim", children.claims),
        ("Service", children.services),
        ("ConfigMap", children.config_maps),
    ):
        for name, item in items.items():
            role = (item["metadata"].get("labels") or {}).get(LABEL_ROLE)
            gone = "deletionTimestamp" in item["metadata"]
            if (kind, name) not in asked and not gone and (planned or role == "store"):
                found.append(item)
    return found
