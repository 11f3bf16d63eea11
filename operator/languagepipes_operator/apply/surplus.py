"""Which live children are no longer wanted. Pure. Secrets are left out: those follow the decision's identities."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from languagepipes_api.names import LABEL_ROLE, LABEL_STORE

from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.ownership import is_store, label
from languagepipes_operator.observe.snapshot import Children


def surplus_children(
    wanted: Iterable[Manifest],
    children: Children,
    *,
    planned: bool,
    left_alone: Collection[str] = (),
    other_stores: Collection[str] = (),
) -> list[Manifest]:
    """Those that are not among `wanted`, Deployments first. planned: whether members are among them at all; without a
    plan only what belongs to a store goes, and replicas stay; disruption budgets are wanted in any case. left_alone:
    names of Deployments that stay too. other_stores: keys of stores of which everything stays. A plan stays as long as
    a Deployment's pods mount it.
    """
    mounted = _mounted_config_maps(children)
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
            of_store = is_store(item)
            if of_store and _stays_with_its_store(kind, item, other_stores):
                continue
            gone = "deletionTimestamp" in item["metadata"]
            stays = name in (left_alone if kind == "Deployment" else mounted if role == "plan" else ())
            always = kind == "PodDisruptionBudget" or of_store
            if (kind, name) not in asked and not gone and not stays and (planned or always):
                found.append(item)
    return found


def _stays_with_its_store(kind: str, item: Manifest, other_stores: Collection[str]) -> bool:
    """The Hub's authorities are the pipe's: stores of any key may mount them."""
    return bool(other_stores) if kind == "ConfigMap" else label(item, LABEL_STORE) in other_stores


def surplus_budgets(wanted: Iterable[Manifest], children: Children) -> list[Manifest]:
    """The disruption budgets alone. Two that select one pod refuse its eviction for ever."""
    return [each for each in surplus_children(wanted, children, planned=False) if each["kind"] == "PodDisruptionBudget"]


def _mounted_config_maps(children: Children) -> set[str]:
    """Names of those that live Deployments refer to."""
    volumes = (
        volume
        for deployment in children.deployments.values()
        for volume in deployment["spec"]["template"]["spec"].get("volumes") or ()
    )
    return {volume["configMap"].get("name", "") for volume in volumes if volume.get("configMap")}
