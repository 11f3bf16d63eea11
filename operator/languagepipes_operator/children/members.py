"""What the Deployments of a replica have in common: who is next in the ring, and what each is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from languagepipes_api.names import RING_PORT, TELEMETRY_PORT, Identity
from languagepipes_api.plan import Plan
from languagepipes_api.spec import LanguagePipe

from languagepipes_operator.children import names, pods
from languagepipes_operator.children import plan_config as plans
from languagepipes_operator.children.labels import labels
from languagepipes_operator.children.settings import ManifestSettings
from languagepipes_operator.decide import last_applied as rendered
from languagepipes_operator.observe.snapshot import Manifest, Snapshot, StoredPlan

# By replica (0 is the first) and member's name: the node where the planner would have it.
Assignments = Callable[[int], Mapping[str, str]]


class Common(TypedDict):
    """Settings that all ring members of a replica share."""

    namespace: str
    pipe: str
    replica: int
    tls_dir: Path
    telemetry_listen: str
    plan_file: Path
    store_address: str
    ring_listen: str


def common_settings(pipe: LanguagePipe, replica: int, settings: ManifestSettings) -> Common:
    return {
        "namespace": pipe.namespace,
        "pipe": pipe.name,
        "replica": replica,
        "tls_dir": Path(names.TLS_DIR),
        "telemetry_listen": f"{settings.every_address}:{TELEMETRY_PORT}",
        "plan_file": Path(names.PLAN_FILE),
        "store_address": names.store_address(pipe.name, pipe.namespace),
        "ring_listen": f"{settings.every_address}:{RING_PORT}",
    }


def ring(pipe: LanguagePipe, plan: Plan, replica: int) -> list[Identity]:
    """A replica's members in the order of the pass: the stages, then the End Model."""
    stages = [Identity(pipe.namespace, pipe.name, replica, "stage", place) for place in range(1, len(plan.stages) + 1)]
    return [*stages, Identity(pipe.namespace, pipe.name, replica, "end-model")]


def successor(pipe: LanguagePipe, plan: Plan, identity: Identity) -> str:
    """The address that this member dials: the next in the ring, which the End Model closes."""
    members = ring(pipe, plan, identity.replica)
    after = members[(members.index(identity) + 1) % len(members)]
    return names.ring_address(after, plan.hash)


def member_files(pipe: LanguagePipe, kept: StoredPlan, identity: Identity) -> list[pods.Files]:
    """Its certificate and its plan."""
    return [
        pods.secret_files("tls", names.leaf_secret(identity), str(names.TLS_DIR)),
        pods.Files("plan", {"configMap": {"name": plans.config_name(pipe.name, kept)}}, str(names.PLAN_DIR)),
    ]


def member_deployment(
    snapshot: Snapshot,
    kept: StoredPlan,
    identity: Identity,
    container: pods.Container,
    settings: ManifestSettings,
    *,
    template: Mapping[str, Any],
    grace_seconds: int,
    node: Callable[[], str | None],
    stage_name: str | None,
    inputs: Mapping[str, Any],
) -> Manifest:
    """inputs: what shapes this member's pod beside its plan, its image and its template. node: asked only where the
    Deployment is rendered anew: a preference says something else each time, and must make no running pod another.
    """
    pipe, plan = snapshot.pipe, kept.plan
    name = names.member(identity, plan.hash)
    live = snapshot.children.deployments.get(name)
    everything = {
        "identity": identity.uri,
        "plan": plan.hash,
        "content": plans.content_hash(kept),
        "template": dict(template),
        **pods.inputs_of(settings),
        **inputs,
    }
    # The first replica's is the plan's own.
    anew = identity.replica == 0 or not rendered.is_for(live, everything)
    selector = labels(
        pipe.name,
        identity.role,
        replica=identity.replica,
        stage=identity.index if identity.role == "stage" else None,
        plan=plan.hash,
    )
    own = labels(
        pipe.name,
        identity.role,
        replica=identity.replica,
        stage=identity.index if identity.role == "stage" else None,
        stage_name=stage_name,
        plan=plan.hash,
    )
    pod = pods.pod_spec(
        container,
        template=template,
        grace_seconds=grace_seconds,
        placement=pods.ring_placement(pipe.name, identity.replica, template, node=node() if anew else None),
        host={"hostname": names.hostname(identity, plan.hash), "subdomain": names.ring_service(pipe.name)},
        fixed_ids=settings.fixed_ids,
    )
    wanted = pods.deployment(snapshot, name, labels=own, selector=selector, pod=pod)
    return rendered.settled(wanted, everything, live)
