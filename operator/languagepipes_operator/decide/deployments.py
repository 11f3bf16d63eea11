"""For each Deployment: which image it runs, and whether its last applied manifest stays. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from languagepipes_api.member_settings import PREFIX
from languagepipes_api.names import LABEL_ROLE, Identity

from languagepipes_operator import names
from languagepipes_operator.decide.decision import DeploymentDecision
from languagepipes_operator.decide.image_pulls import cannot_be_pulled
from languagepipes_operator.decide.inputs import member_inputs, store_inputs
from languagepipes_operator.decide.last_applied import inputs_of, last_applied, rendering_of
from languagepipes_operator.decide.replicas import ring
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.ownership import label
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.observe.stored_plans import StoredPlan
from languagepipes_operator.planning.plan import place
from languagepipes_operator.planning.stages import END_MODEL
from languagepipes_operator.settings import OperatorSettings


@dataclass(frozen=True)
class StoreDecision:
    """The store's Deployment, and the revision of the model that it serves."""

    deployment: DeploymentDecision
    revision: str | None


def store_identity(snapshot: Snapshot) -> Identity:
    return Identity(snapshot.pipe.namespace, snapshot.pipe.name, -1, "store")


def decide_store(snapshot: Snapshot, stored: StoredPlan | None, settings: OperatorSettings) -> StoreDecision:
    """The store runs the image of the plan in force (`stored`), or the operator's if it runs that already. Before there
    is a plan it keeps the image it has. An image that cannot be pulled gives way to the operator's, also where the ring
    keeps it: members of any image load from it.
    """
    pipe, name = snapshot.pipe, names.store(snapshot.pipe.name)
    live = snapshot.children.deployments.get(name)
    before = rendering_of(live)
    runs = _container_field(before, "image")
    lost = runs not in (None, settings.node_image) and cannot_be_pulled(
        runs, [] if live is None else [live], _store_pods(snapshot), now=snapshot.now
    )
    keeps_image = not lost and (stored is None or runs in (stored.node_image, settings.node_image))
    pinned = _pinned_commit(snapshot, stored, before)
    inputs = store_inputs(pipe, settings, pinned=pinned)
    deployment = DeploymentDecision(
        identity=store_identity(snapshot),
        name=name,
        image=settings.node_image if stored is None or lost else stored.node_image,
        inputs=inputs,
        last_applied=last_applied(snapshot, name) if keeps_image and inputs_of(live) == inputs else None,
    )
    return StoreDecision(deployment, pinned or pipe.spec.model.resolved_from)


def decide_members(
    snapshot: Snapshot, stored: StoredPlan, settings: OperatorSettings, *, replicas: Iterable[int]
) -> tuple[DeploymentDecision, ...]:
    """Every stage and End Model of these replicas."""
    pipe, plan = snapshot.pipe, stored.plan

    @cache
    def assignments(replica: int) -> dict[str, str]:
        return place(plan, pipe.spec, snapshot.nodes or (), replica=replica)

    def decided(identity: Identity) -> DeploymentDecision:
        name = names.member(identity, plan.hash)
        inputs = member_inputs(pipe, stored, identity, settings)
        same = inputs_of(snapshot.children.deployments.get(name)) == inputs
        last = last_applied(snapshot, name) if same else None
        # The planner's preference differs with the nodes that there are, and must not change a pod that runs. The first
        # replica's is part of the plan.
        prefers_node = last is None and (identity.replica == 0 or not same)
        member = plan.stages[identity.index - 1].name if identity.role == "stage" else END_MODEL
        node = assignments(identity.replica).get(member) if prefers_node else None
        return DeploymentDecision(identity, name, stored.node_image, inputs, last, node)

    return tuple(decided(identity) for replica in replicas for identity in ring(pipe, plan, replica))


def _store_pods(snapshot: Snapshot) -> list[Manifest]:
    return [pod for pod in snapshot.children.pods.values() if label(pod, LABEL_ROLE) == "store"]


def _pinned_commit(snapshot: Snapshot, stored: StoredPlan | None, before: Manifest | None) -> str | None:
    """The plan's commit, where the store's settings must name it: its volume was lost, and the branch has moved on
    since. Once named it stays; naming it earlier would cost a restart in the middle of the download.
    """
    if stored is None or not snapshot.pipe.spec.model.source.startswith("hf://"):
        return None
    commit, report = stored.facts.revision, snapshot.store
    moved = report is not None and report.facts is not None and report.facts.revision != commit
    variables = {item.get("name"): item.get("value") for item in _container_field(before, "env") or ()}
    return commit if moved or variables.get(f"{PREFIX}REVISION") == commit else None


def _container_field(deployment: Manifest | None, field: str) -> Any:
    try:
        return None if deployment is None else deployment["spec"]["template"]["spec"]["containers"][0].get(field)
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
