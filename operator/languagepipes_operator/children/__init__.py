"""Every child of a pipe as a manifest. Pure: a snapshot in, manifests out, the same bytes for the same snapshot.

Certificates are made elsewhere (`certificates.secrets`); here their Secrets are mounted by name.
"""

from __future__ import annotations

from functools import cache

from languagepipes_operator.children import budget, end_model, members, policies, services, stage, store
from languagepipes_operator.children.plan_config import plan_config_map, stored_plan
from languagepipes_operator.children.settings import ManifestSettings
from languagepipes_operator.decide.replicas import replica_numbers
from languagepipes_operator.observe.snapshot import Manifest, Snapshot, StoredPlan
from languagepipes_operator.planning.plan import place

__all__ = ["ManifestSettings", "stored_plan", "plan_children", "store_children"]


def store_children(snapshot: Snapshot, settings: ManifestSettings, kept: StoredPlan | None = None) -> list[Manifest]:
    """What a pipe has before there is a plan and as long as it lives: the store, and the Services.

    kept: the plan in force, if there is one: then the store runs its image.
    """
    found = [
        services.store_service(snapshot),
        services.api_service(snapshot),
        store.cache_claim(snapshot),
        store.hub_authorities(snapshot, settings),
        policies.store_policy(snapshot, settings) if snapshot.pipe.spec.network_policy.enabled else None,
        store.store_deployment(snapshot, kept, settings),
    ]
    return [manifest for manifest in found if manifest is not None]


def plan_children(snapshot: Snapshot, kept: StoredPlan, settings: ManifestSettings) -> list[Manifest]:
    """What a plan asks for: its ConfigMap, the ring's names, budget and policies, and every replica's members."""
    found = [
        plan_config_map(snapshot, kept),
        services.ring_service(snapshot),
        budget.disruption_budget(snapshot),
    ]
    if snapshot.pipe.spec.network_policy.enabled:
        found += policies.ring_policies(snapshot, kept)

    @cache
    def assignments(replica: int) -> dict[str, str]:
        return place(kept.plan, snapshot.pipe.spec, snapshot.nodes or (), replica=replica)

    for replica in replica_numbers(snapshot.children, snapshot.pipe.spec.replicas):
        for identity in members.ring(snapshot.pipe, kept.plan, replica):
            make = stage.stage_deployment if identity.role == "stage" else end_model.end_model_deployment
            found.append(make(snapshot, kept, settings, identity, assignments))
    return found
