"""For each Deployment: which image it runs, and whether its last applied manifest stays. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from languagepipes_api.member_settings import PREFIX
from languagepipes_api.names import LABEL_PLAN, LABEL_ROLE, LABEL_STORE, Identity

from languagepipes_operator import names
from languagepipes_operator.decide.decision import DeploymentDecision
from languagepipes_operator.decide.drains import is_leaving
from languagepipes_operator.decide.give_way import is_stopped, keeps_end_model, standing
from languagepipes_operator.decide.idle import idle_from, woken_until
from languagepipes_operator.decide.image_pulls import cannot_be_pulled
from languagepipes_operator.decide.inputs import member_inputs, store_inputs
from languagepipes_operator.decide.last_applied import (
    container_of,
    environment_of,
    inputs_of,
    last_applied,
    rendering_of,
)
from languagepipes_operator.decide.replicas import (
    deployments_of,
    existing,
    has_ended,
    holds_requests,
    is_draining,
    open_requests,
    ready_since,
    ring,
    taken,
)
from languagepipes_operator.decide.revisions import runs_revision
from languagepipes_operator.decide.rollout import Replica, Rollout, next_step
from languagepipes_operator.decide.stores import store_identity
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.ownership import identity_of, is_store, label, name_of
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.observe.stored_plans import StoredPlan
from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.planning.plan import how_many_fit, place
from languagepipes_operator.planning.stages import END_MODEL
from languagepipes_operator.settings import OperatorSettings


@dataclass(frozen=True)
class StoreDecision:
    """The store's Deployment, and the revision of the model that it serves."""

    deployment: DeploymentDecision
    revision: str | None


@dataclass(frozen=True)
class Others:
    """members: what is to become of those whose last applied manifest is known. left_alone: names of the other
    Deployments that stay.
    """

    members: tuple[DeploymentDecision, ...]
    left_alone: frozenset[str]


def decide_store(
    snapshot: Snapshot,
    stored: StoredPlan | None,
    settings: OperatorSettings,
    *,
    key: str,
    running: StoredPlan | None = None,
    as_applied: bool = False,
) -> StoreDecision:
    """The store of the spec's model (`key`) runs the image of the plan in force (`stored`), or the operator's if it
    runs that already. While there is no plan for the spec it keeps the image it has; a new one beside another has that
    of the plan whose replicas go on (`running`). An image that cannot be pulled gives way to the operator's, also where
    the ring keeps it: members of any image load from it. as_applied: it stays as it was applied last, whatever the
    spec asks for.
    """
    pipe, name = snapshot.pipe, names.store(snapshot.pipe.name, key)
    live = snapshot.children.deployments.get(name)
    before = rendering_of(live)
    runs = container_of(before).get("image")
    lost = runs not in (None, settings.node_image) and cannot_be_pulled(
        runs, [] if live is None else [live], _store_pods(snapshot, key), now=snapshot.now
    )
    if live is None and key and running is not None:
        runs = running.node_image
    keeps_image = not lost and (stored is None or runs in (stored.node_image, settings.node_image))
    pinned = _pinned_commit(snapshot, stored, before, key)
    inputs = store_inputs(pipe, settings, pinned=pinned)
    if as_applied:
        inputs = inputs_of(live) or inputs
    if stored is not None and not lost:
        image = stored.node_image
    else:
        has_members = any(label(item, LABEL_PLAN) for item in snapshot.children.deployments.values())
        image = runs if runs is not None and has_members and not lost else settings.node_image
    deployment = DeploymentDecision(
        identity=store_identity(snapshot),
        name=name,
        image=image,
        inputs=inputs,
        last_applied=last_applied(snapshot, name) if keeps_image and inputs_of(live) == inputs else None,
        store_key=key,
    )
    return StoreDecision(deployment, pinned or pipe.spec.model.resolved_from)


def decide_rollout(
    snapshot: Snapshot,
    stored: StoredPlan,
    settings: OperatorSettings,
    *,
    store_key: str,
    as_applied: bool = False,
    is_new: bool = False,
) -> Rollout:
    """Which replicas there are to be now, if this plan is in force and its members load from that store.

    as_applied: it does not serve the spec as it stands, so every replica that runs it counts as updated, whatever else
    the spec asks for. is_new: it was just made.
    """
    children, wanted = snapshot.children, snapshot.replicas
    rest = rollout_at_rest(snapshot, stored, settings, store_key=store_key, as_applied=as_applied)
    leaving = {number for number in rest.updated if is_leaving(snapshot, number)}
    if len(rest.updated) == wanted and not rest.outdated and not rest.draining and not leaving:
        # The steady state costs no look at pods.
        return rest if snapshot.desired != 0 else replace(rest, due=idle_from(snapshot, rest))
    until = None if rest.draining else woken_until(snapshot)
    if until is not None:
        return replace(rest, due=until, leaving=tuple(sorted(leaving)))
    live = [
        Replica(
            number,
            updated=number in rest.updated,
            ready_since=ready_since(children, number),
            holds_requests=holds_requests(snapshot, number),
            draining=number in rest.draining,
            open_requests=open_requests(snapshot, number),
            leaving=number in leaving,
        )
        for number in existing(children)
    ]
    limits = snapshot.pipe.spec.rollout

    def fits(more: int) -> tuple[int, PlanError | None]:
        spec = snapshot.pipe.spec
        if spec.placement.allow_pending or (is_new and wanted <= spec.planned_replicas):
            return more, None  # a new plan has found room for so many
        return how_many_fit(stored.plan, spec, snapshot.occupied_nodes or (), more=more)

    return next_step(live, wanted=wanted, limits=limits, taken=taken(children), now=snapshot.now, fits=fits)


def rollout_at_rest(
    snapshot: Snapshot, stored: StoredPlan, settings: OperatorSettings, *, store_key: str, as_applied: bool = False
) -> Rollout:
    """The replicas that there are, as if nothing were to change. as_applied: as for `decide_rollout`."""
    numbers = existing(snapshot.children)
    draining = tuple(number for number in numbers if is_draining(snapshot.children, number))
    rest = [number for number in numbers if number not in draining]
    updated = tuple(
        number
        for number in rest
        if runs_revision(snapshot, stored, settings, number, store_key=store_key, as_applied=as_applied)
    )
    return Rollout(updated, tuple(number for number in rest if number not in updated), draining)


def decide_members(
    snapshot: Snapshot,
    stored: StoredPlan,
    settings: OperatorSettings,
    *,
    replicas: Sequence[int],
    store_key: str,
    as_applied: bool = False,
) -> tuple[DeploymentDecision, ...]:
    """Every stage and End Model of these replicas, which load from that store.

    as_applied: the plan does not serve the spec as it stands, so members that there are stay as they were applied last,
    whatever the spec asks for.
    """
    pipe, plan = snapshot.pipe, stored.plan

    @cache
    def assignments(place_of: int) -> dict[str, str]:
        return place(plan, pipe.spec, snapshot.nodes or (), replica=place_of)

    def decided(identity: Identity) -> DeploymentDecision:
        name = names.member(identity, plan.hash)
        inputs = member_inputs(pipe, stored, identity, settings, store_key=store_key)
        applied = last_applied(snapshot, name)
        before = inputs_of(snapshot.children.deployments.get(name))
        if as_applied:
            if applied is not None and before is not None:
                inputs = before
            return DeploymentDecision(identity, name, stored.node_image, inputs, applied, store_key=store_key)
        same = before == inputs
        last = applied if same else None
        # The planner's preference differs with the nodes that there are, and must not change a pod that runs. The first
        # replica's is part of the plan; which number it has does not matter.
        place_of = replicas.index(identity.replica)
        prefers_node = last is None and (place_of == 0 or not same)
        member = plan.stages[identity.index - 1].name if identity.role == "stage" else END_MODEL
        node = assignments(place_of).get(member) if prefers_node else None
        return DeploymentDecision(identity, name, stored.node_image, inputs, last, node, store_key=store_key)

    return tuple(decided(identity) for replica in replicas for identity in ring(pipe, plan, replica))


def give_way(
    snapshot: Snapshot, stored: StoredPlan, rollout: Rollout, members: tuple[DeploymentDecision, ...]
) -> tuple[Rollout, tuple[DeploymentDecision, ...]]:
    """The members of replicas that cannot be placed as a whole, without pods for now (`decide.give_way`)."""
    spec = snapshot.pipe.spec

    @cache
    def has_room() -> bool:
        if spec.placement.allow_pending or snapshot.occupied_nodes is None:
            return True
        return how_many_fit(stored.plan, spec, snapshot.occupied_nodes, more=1)[0] > 0

    due = [rollout.due]
    found: list[DeploymentDecision] = list(members)
    for replica in rollout.updated:
        waits, keeps = is_stopped(snapshot.children, replica), keeps_end_model(snapshot.children, replica)
        # There is no counting of room for stages alone.
        now = standing(snapshot, replica, room=not waits or keeps or has_room(), keeps=keeps)
        due.append(now.due)
        if now.gave_way is not None:
            text = now.gave_way.annotation()
            found = [
                replace(each, stopped=now.stopped, gave_way=text)
                if each.identity.replica == replica and not (keeps and each.identity.role == "end-model")
                else each
                for each in found
            ]
    times = [each for each in due if each is not None]
    return replace(rollout, due=min(times, default=None)), tuple(found)


def decide_others(snapshot: Snapshot, rollout: Rollout) -> Others:
    """The replicas that do not run the revision asked for, or no longer count: as they were last applied.

    Of a replica that goes, the End Model is stopped first, since its answers need the stages; then the stages; and
    nothing of it is wanted once no pod is left. So no Deployment is deleted while it has a pod, which disruption
    budgets would not understand.
    """
    children = snapshot.children
    kept: list[DeploymentDecision] = []
    left_alone: set[str] = set()
    for replica in (*rollout.outdated, *rollout.draining):
        draining = replica in rollout.draining
        end_model_ended = draining and has_ended(children, replica, "end-model")
        if draining and end_model_ended and has_ended(children, replica):
            continue
        for live in deployments_of(children, replica):
            identity, name = identity_of(live, snapshot.pipe), name_of(live)
            stopped = draining and (end_model_ended or label(live, LABEL_ROLE) == "end-model")
            last = last_applied(snapshot, name)
            if identity is not None and last is not None:
                image = str(container_of(last.manifest).get("image") or "")
                kept.append(
                    DeploymentDecision(
                        identity, name, image, inputs_of(live) or "", last, draining=draining, stopped=stopped
                    )
                )
            elif not stopped:
                left_alone.add(name)
    return Others(tuple(kept), frozenset(left_alone))


def _store_pods(snapshot: Snapshot, key: str) -> list[Manifest]:
    return [pod for pod in snapshot.children.pods.values() if is_store(pod) and label(pod, LABEL_STORE) == key]


def _pinned_commit(snapshot: Snapshot, stored: StoredPlan | None, before: Manifest | None, key: str) -> str | None:
    """The plan's commit, where the store's settings must name it: its volume was lost, and the branch has moved on
    since; or it is a second store, made for a plan that is there. Once named it stays; naming it earlier would cost a
    restart in the middle of the download.
    """
    if stored is None or not snapshot.pipe.spec.model.source.startswith("hf://"):
        return None
    if before is None and key:
        return stored.facts.revision
    commit, report = stored.facts.revision, snapshot.store if snapshot.store_key == key else None
    moved = report is not None and report.facts is not None and report.facts.revision != commit
    return commit if moved or environment_of(before).get(f"{PREFIX}REVISION") == commit else None
