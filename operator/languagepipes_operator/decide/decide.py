"""From a snapshot to a decision. Pure: the same snapshot, settings and remembered plan give the same decision.

Takes milliseconds, so the event loop hands it to a thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from languagepipes_api.facts import ModelFacts
from languagepipes_api.names import Identity

from languagepipes_operator import names
from languagepipes_operator.decide.decision import Decision, DeploymentDecision
from languagepipes_operator.decide.deployments import (
    decide_members,
    decide_others,
    decide_rollout,
    decide_store,
    give_way,
    rollout_at_rest,
)
from languagepipes_operator.decide.drains import decide_drains
from languagepipes_operator.decide.held_back import held_back
from languagepipes_operator.decide.idle import is_idle, is_to_idle
from languagepipes_operator.decide.inputs import store_inputs
from languagepipes_operator.decide.last_applied import inputs_of
from languagepipes_operator.decide.plan_choice import PlanChoice, choose_plan, known_plans
from languagepipes_operator.decide.revisions import revision_of
from languagepipes_operator.decide.rollout import Rollout
from languagepipes_operator.decide.running_plan import running_plan
from languagepipes_operator.decide.stores import other_stores, store_of_plan, wanted_store
from languagepipes_operator.observe.endpoint import publishes_unready
from languagepipes_operator.observe.ownership import identity_of
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.observe.stored_plans import StoredPlan, pinned_facts, stored_plans
from languagepipes_operator.settings import OperatorSettings


def decide(snapshot: Snapshot, settings: OperatorSettings, remembered: StoredPlan | None = None) -> Decision:
    """remembered: the plan in force so far, should its ConfigMap have been deleted."""
    # 1. The plan: the stored one, or a new one once the store of this very model has reported its facts.
    plans = known_plans(snapshot, remembered)
    facts = _reported_facts(snapshot, settings, wanted_store(snapshot, plans))
    choice = choose_plan(snapshot, facts=facts, node_image=settings.node_image, remembered=remembered)
    running = running_plan(snapshot.children, plans)
    decision = decide_with_plan(snapshot, settings, choice, running)
    if not snapshot.pipe.spec.paused:
        return decision
    held = held_back(snapshot, decision)
    if choice.is_new:
        decision = decide_with_plan(snapshot, settings, PlanChoice(), running)
    plan = decision.plan or decision.running
    key = decision.store.store_key
    at_rest = None if plan is None else rollout_at_rest(snapshot, plan, settings, store_key=key, as_applied=True)
    if plan is not None and decision.store.name not in snapshot.children.deployments:
        key = store_of_plan(snapshot.children, plan, wanted=key)
    return replace(
        decision,
        rollout=at_rest,
        idle=at_rest is not None and is_idle(snapshot, at_rest),
        held_back=held,
        store=replace(decision.store, store_key=key),
        drains=decide_drains(snapshot, at_rest),
    )


def decide_with_plan(
    snapshot: Snapshot, settings: OperatorSettings, choice: PlanChoice, running: StoredPlan | None = None
) -> Decision:
    """What follows from the plan. running: the one that the replicas run, whether or not it serves the spec."""
    running = running if choice.stored is None else None
    plan = choice.stored or running
    # 2. The weights store of the spec's model, with or without a plan.
    plans = [
        each
        for each in (choice.stored, running, *stored_plans(snapshot.children.config_maps.values()))
        if each is not None
    ]
    key = members_key = wanted_store(snapshot, plans, in_force=choice.stored)
    if running is not None:
        members_key = store_of_plan(snapshot.children, running, wanted=key)
    # A spec that is refused changes nothing of what serves the members, unless the facts that it is refused for come
    # from another store.
    as_applied = (
        choice.refusal is not None and running is not None and pinned_facts([running], snapshot.pipe.spec) is not None
    )
    if as_applied:
        key = members_key
    store = decide_store(snapshot, choice.stored, settings, key=key, running=running, as_applied=as_applied)
    # 3. The replicas and their members. Without a plan for the spec as it stands, an older plan's replicas go on as
    # they are, and load from the store they have; their number is the spec's.
    rollout, members, left_alone = _decide_replicas(
        snapshot, settings, plan, store_key=members_key, as_applied=running is not None, is_new=choice.is_new
    )
    idle = rollout is not None and is_to_idle(snapshot, rollout)
    if idle:
        members = tuple(replace(each, stopped=True) if each.identity.role == "stage" else each for each in members)
    drains = decide_drains(snapshot, rollout)
    # 4. Certificates are for all members that are wanted, and all that still exist.
    wanted = (store.deployment.identity, *(member.identity for member in members))
    return Decision(
        plan=choice.stored,
        plan_is_new=choice.is_new,
        refusal=choice.refusal,
        running=running,
        store=store.deployment,
        store_revision=store.revision,
        other_stores=(others := other_stores(snapshot, wanted=key)),
        revision=None
        if choice.stored is None
        else revision_of(snapshot.pipe, choice.stored, settings, store_key=members_key),
        rollout=rollout,
        members=members,
        left_alone=left_alone | {each.name for each in others if each.deployment is None},
        identities=_in_order({*wanted, *_existing(snapshot)}),
        publish_unready=publishes_unready(snapshot) and _has_one_end_model(members),
        idle=idle,
        paused=snapshot.pipe.spec.paused,
        drains=drains,
    )


def _decide_replicas(
    snapshot: Snapshot,
    settings: OperatorSettings,
    stored: StoredPlan | None,
    *,
    store_key: str,
    as_applied: bool,
    is_new: bool,
) -> tuple[Rollout | None, tuple[DeploymentDecision, ...], frozenset[str]]:
    """Which there are to be, their members, and the names of Deployments that stay as they are."""
    if stored is None:
        return None, (), frozenset()
    rollout = decide_rollout(snapshot, stored, settings, store_key=store_key, as_applied=as_applied, is_new=is_new)
    others = decide_others(snapshot, rollout)
    updated = decide_members(
        snapshot, stored, settings, replicas=rollout.updated, store_key=store_key, as_applied=as_applied
    )
    rollout, updated = give_way(snapshot, stored, rollout, updated)
    return rollout, (*updated, *others.members), others.left_alone


def _has_one_end_model(members: Iterable[DeploymentDecision]) -> bool:
    """A second one is about to be made, else: the Service must not lead to it before it is Ready, so it stops to lead
    to any that is not before there is a second pod. Without a plan there is no second one, and one that is stopped is
    none: while its pod is still there, that is seen.
    """
    return sum(member.identity.role == "end-model" and not member.stopped for member in members) <= 1


def _reported_facts(snapshot: Snapshot, settings: OperatorSettings, key: str) -> ModelFacts | None:
    """What the store reported, if it is the store of the spec as it stands and not one that is about to be replaced."""
    if snapshot.store is None or snapshot.store_key != key:
        return None
    live = snapshot.children.deployments.get(names.store(snapshot.pipe.name, key))
    wanted = store_inputs(snapshot.pipe, settings, pinned=None)
    return snapshot.store.facts if inputs_of(live) == wanted else None


def _existing(snapshot: Snapshot) -> Iterable[Identity]:
    """Stages and End Models of any plan that have a Deployment."""
    found = (identity_of(item, snapshot.pipe) for item in snapshot.children.deployments.values())
    return (identity for identity in found if identity is not None)


def _in_order(identities: Iterable[Identity]) -> tuple[Identity, ...]:
    return tuple(sorted(identities, key=lambda identity: (identity.replica, identity.role, identity.index)))
