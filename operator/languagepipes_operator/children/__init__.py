"""Every child of a pipe as a manifest. Pure: the same snapshot, decision and settings give the same bytes.

Nothing is decided here: which plan, which image, which replicas, and which Deployments keep their last applied manifest
is in the decision. Secrets of certificates are made in `certificates`; here they are mounted by name.
"""

from __future__ import annotations

from collections.abc import Iterable

from languagepipes_operator.children import budget, end_model, plan_config, policies, services, stage, store
from languagepipes_operator.children.deployments import deployment_of
from languagepipes_operator.decide.decision import Decision, DeploymentDecision, OtherStore
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.observe.stored_plans import StoredPlan
from languagepipes_operator.settings import OperatorSettings


def render(snapshot: Snapshot, decision: Decision, settings: OperatorSettings) -> list[Manifest]:
    """All children but Secrets."""
    found = _of_the_pipe(snapshot, decision, settings)
    found += budget.disruption_budgets(snapshot, decision.drains)
    plan = decision.plan or decision.running
    if plan is not None:
        found += _of_the_plan(snapshot, decision, plan, settings)
    return found


def _of_the_pipe(snapshot: Snapshot, decision: Decision, settings: OperatorSettings) -> list[Manifest]:
    """What a pipe has before there is a plan and as long as it exists: the weights store, and the Services."""
    key = decision.store.store_key
    found = [
        services.store_service(snapshot, key),
        services.api_service(snapshot, publish_unready=decision.publish_unready),
        store.cache_claim(snapshot, key),
        store.hub_authorities(snapshot, settings),
        policies.store_policy(snapshot, settings, key=key, source=snapshot.pipe.spec.model.source)
        if snapshot.pipe.spec.network_policy.enabled
        else None,
        deployment_of(
            decision.store,
            lambda decided: store.store_deployment(snapshot, decided, settings, revision=decision.store_revision),
        ),
    ]
    for other in decision.other_stores:
        found += _of_another_store(snapshot, other, settings)
    return [manifest for manifest in found if manifest is not None]


def _of_another_store(snapshot: Snapshot, other: OtherStore, settings: OperatorSettings) -> Iterable[Manifest]:
    """What does not depend on a spec that is gone. Its volume and authorities stay as they are (`apply.surplus`)."""
    yield services.store_service(snapshot, other.key)
    if snapshot.pipe.spec.network_policy.enabled and other.source is not None:
        yield policies.store_policy(snapshot, settings, key=other.key, source=other.source)
    if other.deployment is not None:
        yield deployment_of(other.deployment, _never_rendered)


def _never_rendered(decided: DeploymentDecision) -> Manifest:
    raise ValueError(f"{decided.name} has no last applied manifest")


def _of_the_plan(
    snapshot: Snapshot, decision: Decision, plan: StoredPlan, settings: OperatorSettings
) -> list[Manifest]:
    """What a plan asks for: its ConfigMap, the ring's names and policies, and every replica's members."""
    found = [
        plan_config.plan_config_map(snapshot, plan),
        services.ring_service(snapshot),
    ]
    if snapshot.pipe.spec.network_policy.enabled:
        found += policies.ring_policies(snapshot, plan, further_stores=bool(decision.store_keys - {""}))

    def member_deployment(decided: DeploymentDecision) -> Manifest:
        make = stage.stage_deployment if decided.identity.role == "stage" else end_model.end_model_deployment
        return make(snapshot, plan, decided, settings)

    return found + [deployment_of(member, member_deployment) for member in decision.members]
