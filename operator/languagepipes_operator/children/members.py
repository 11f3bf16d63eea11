"""What the Deployments of a replica have in common: the settings, files and labels of every member of its ring."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from languagepipes_api.names import RING_PORT, TELEMETRY_PORT, Identity
from languagepipes_api.plan import Plan
from languagepipes_api.spec import LanguagePipe

from languagepipes_operator import names
from languagepipes_operator.children import plan_config, pods
from languagepipes_operator.children.labels import labels
from languagepipes_operator.decide.decision import DeploymentDecision
from languagepipes_operator.decide.replicas import ring
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.observe.stored_plans import StoredPlan
from languagepipes_operator.settings import OperatorSettings


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


def common_settings(pipe: LanguagePipe, replica: int, settings: OperatorSettings, *, store_key: str) -> Common:
    """store_key: which of the pipe's stores they load from."""
    return {
        "namespace": pipe.namespace,
        "pipe": pipe.name,
        "replica": replica,
        "tls_dir": Path(names.TLS_DIR),
        "telemetry_listen": f"{settings.every_address}:{TELEMETRY_PORT}",
        "plan_file": Path(names.PLAN_FILE),
        "store_address": names.store_address(pipe.name, pipe.namespace, store_key),
        "ring_listen": f"{settings.every_address}:{RING_PORT}",
    }


def successor(pipe: LanguagePipe, plan: Plan, identity: Identity) -> str:
    """The address that this member dials: the next in the ring, which the End Model closes."""
    members = ring(pipe, plan, identity.replica)
    after = members[(members.index(identity) + 1) % len(members)]
    return names.ring_address(after, plan.hash)


def member_files(pipe: LanguagePipe, stored: StoredPlan, identity: Identity) -> list[pods.Files]:
    """Its certificate and its plan."""
    return [
        pods.secret_files("tls", names.leaf_secret(identity), str(names.TLS_DIR)),
        pods.Files("plan", {"configMap": {"name": plan_config.config_name(pipe.name, stored)}}, str(names.PLAN_DIR)),
    ]


def member_deployment(
    snapshot: Snapshot,
    plan: Plan,
    decided: DeploymentDecision,
    container: pods.Container,
    settings: OperatorSettings,
    *,
    template: Mapping[str, Any],
    grace_seconds: int,
    stage_name: str | None,
) -> Manifest:
    """stage_name: as the plan has it, for people; it is no part of the selector, which never changes."""
    pipe, identity = snapshot.pipe.name, decided.identity
    stage = identity.index if identity.role == "stage" else None
    selector = labels(pipe, identity.role, replica=identity.replica, stage=stage, plan=plan.hash)
    own = labels(
        pipe,
        identity.role,
        replica=identity.replica,
        stage=stage,
        stage_name=stage_name,
        plan=plan.hash,
        store=decided.store_key or None,
    )
    pod = pods.pod_spec(
        container,
        template=template,
        grace_seconds=grace_seconds,
        placement=pods.ring_placement(pipe, identity.replica, template, node=decided.node),
        host={"hostname": names.hostname(identity, plan.hash), "subdomain": names.ring_service(pipe)},
        settings=settings,
    )
    return pods.deployment(snapshot, decided.name, labels=own, selector=selector, pod=pod, template=template)
