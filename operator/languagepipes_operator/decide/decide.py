"""From a snapshot to a decision. Pure: the same snapshot, settings and remembered plan give the same decision.

Takes milliseconds, so the event loop hands it to a thread.
"""

from __future__ import annotations

from collections.abc import Iterable

from languagepipes_api.facts import ModelFacts
from languagepipes_api.names import Identity

from languagepipes_operator import names
from languagepipes_operator.decide.decision import Decision
from languagepipes_operator.decide.deployments import decide_members, decide_store
from languagepipes_operator.decide.inputs import store_inputs
from languagepipes_operator.decide.last_applied import inputs_of
from languagepipes_operator.decide.plan_choice import PlanChoice, choose_plan
from languagepipes_operator.decide.replicas import replica_numbers
from languagepipes_operator.observe.endpoint import publishes_unready
from languagepipes_operator.observe.ownership import identity_of
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.observe.stored_plans import StoredPlan
from languagepipes_operator.settings import OperatorSettings


def decide(snapshot: Snapshot, settings: OperatorSettings, remembered: StoredPlan | None = None) -> Decision:
    """remembered: the plan in force so far, should its ConfigMap have been deleted."""
    # 1. The plan: the stored one, or a new one once the store of this very model has reported its facts.
    facts = _reported_facts(snapshot, settings)
    choice = choose_plan(snapshot, facts=facts, node_image=settings.node_image, remembered=remembered)
    if snapshot.pipe.spec.paused and choice.is_new:
        choice = PlanChoice()
    return decide_with_plan(snapshot, settings, choice)


def decide_with_plan(snapshot: Snapshot, settings: OperatorSettings, choice: PlanChoice) -> Decision:
    """What follows from the plan."""
    # 2. The weights store, with or without a plan.
    store = decide_store(snapshot, choice.stored, settings)
    # 3. The replicas and their members. Without a plan for the spec as it stands, an older plan's replicas stay.
    replicas = () if choice.stored is None else replica_numbers(snapshot.children, snapshot.pipe.spec.replicas)
    members = () if choice.stored is None else decide_members(snapshot, choice.stored, settings, replicas=replicas)
    # 4. Certificates are for all members that are wanted, and all that still exist.
    wanted = (store.deployment.identity, *(member.identity for member in members))
    return Decision(
        plan=choice.stored,
        plan_is_new=choice.is_new,
        refusal=choice.refusal,
        store=store.deployment,
        store_revision=store.revision,
        replicas=replicas,
        members=members,
        identities=_in_order({*wanted, *_existing(snapshot)}),
        publish_unready=publishes_unready(snapshot),
        paused=snapshot.pipe.spec.paused,
    )


def _reported_facts(snapshot: Snapshot, settings: OperatorSettings) -> ModelFacts | None:
    """What the store reported, if it is the store of the spec as it stands and not one that is about to be replaced."""
    if snapshot.store is None:
        return None
    live = snapshot.children.deployments.get(names.store(snapshot.pipe.name))
    wanted = store_inputs(snapshot.pipe, settings, pinned=None)
    return snapshot.store.facts if inputs_of(live) == wanted else None


def _existing(snapshot: Snapshot) -> Iterable[Identity]:
    """Stages and End Models of any plan that have a Deployment."""
    found = (identity_of(item, snapshot.pipe) for item in snapshot.children.deployments.values())
    return (identity for identity in found if identity is not None)


def _in_order(identities: Iterable[Identity]) -> tuple[Identity, ...]:
    return tuple(sorted(identities, key=lambda identity: (identity.replica, identity.role, identity.index)))
