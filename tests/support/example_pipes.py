"""Pipes, plans and snapshots to render from."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from languagepipes_api.spec import parse_pipe
from languagepipes_operator.children import render
from languagepipes_operator.decide.decide import decide_with_plan
from languagepipes_operator.decide.plan_choice import PlanChoice
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Children, Snapshot
from languagepipes_operator.observe.stored_plans import StoredPlan
from languagepipes_operator.planning import plan
from languagepipes_operator.settings import OperatorSettings

from support.smollm2_facts import FACTS

OPERATOR_NAMESPACE = "languagepipes-system"


def settings(**changed: Any) -> OperatorSettings:
    return OperatorSettings(
        **{"node_image": "languagepipes-node:1", "pod_namespace": OPERATOR_NAMESPACE, "identity": "one", **changed}
    )


def pipe_snapshot(
    name: str = "qwen3",
    *,
    namespace: str = "default",
    stages: Any = None,
    source: str = "hf://Qwen/Qwen3-8B",
    children: Children | None = None,
    uid: str = "5f0c2a1e-0000-4000-8000-000000000001",
    **spec: Any,
) -> Snapshot:
    """spec: further fields of the spec, in YAML's spelling; `model` holds what is beside the source."""
    raw = {
        "apiVersion": "languagepipes.io/v1alpha1",
        "kind": "LanguagePipe",
        "metadata": {"name": name, "namespace": namespace, "uid": uid, "generation": 1},
        "spec": {"stages": stages or {"count": 3}, **spec, "model": {"source": source, **spec.get("model", {})}},
    }
    return Snapshot(
        pipe=parse_pipe(raw, local=False),
        raw=raw,
        children=children or Children(),
        now=datetime(2026, 11, 24, tzinfo=UTC),
    )


def stored_plan_of(snapshot: Snapshot, *, image: str = "languagepipes-node:1") -> StoredPlan:
    return StoredPlan(plan=plan(snapshot.pipe.spec, FACTS), facts=FACTS, node_image=image, inputs="0123456789abcdef")


def rendered(snapshot: Snapshot, stored: StoredPlan | None = None, **changed: Any) -> list[Manifest]:
    """All children but Secrets, where this plan is in force; changed: of the operator's settings."""
    operator = settings(**changed)
    return render(
        snapshot, decide_with_plan(snapshot, operator, PlanChoice(stored or stored_plan_of(snapshot))), operator
    )


def rolled_out(snapshot: Snapshot, stored: StoredPlan | None = None, **changed: Any) -> list[Manifest]:
    """The same once nothing is left to do: each step is carried out as soon as it is decided, and no pod takes time."""
    while True:
        found = rendered(snapshot, stored, **changed)
        after = living(snapshot, found)
        if after.children.deployments == snapshot.children.deployments:
            return found
        snapshot = after


def store_children(snapshot: Snapshot, operator: OperatorSettings, stored: StoredPlan | None = None) -> list[Manifest]:
    """Those that a pipe has with and without a plan: the store and the Services."""
    children = render(snapshot, decide_with_plan(snapshot, operator, PlanChoice(stored)), operator)
    return [each for each in children if each["metadata"]["labels"]["languagepipes.io/role"] in ("store", "api")]


def of_kind(manifests: list[Manifest], kind: str, role: str | None = None) -> list[Manifest]:
    return [
        manifest
        for manifest in manifests
        if manifest["kind"] == kind
        and (role is None or manifest["metadata"]["labels"]["languagepipes.io/role"] == role)
    ]


def pod_of(deployment: Manifest) -> Manifest:
    """The pod's spec."""
    spec: Manifest = deployment["spec"]["template"]["spec"]
    return spec


def container_of(deployment: Manifest) -> Manifest:
    container: Manifest = pod_of(deployment)["containers"][0]
    return container


def waiting(reason: str) -> dict[str, Any]:
    """A container's state."""
    return {"waiting": {"reason": reason}}


def pod_of_deployment(deployment: Manifest, *, state: dict[str, Any] | None = None, ready: bool = True) -> Manifest:
    """Its pod as the API server shows it, made at the snapshot's time; it runs unless its container is in `state`."""
    labels = deployment["metadata"]["labels"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{deployment['metadata']['name']}-7c9d-x2x4p",
            "labels": labels,
            "creationTimestamp": "2026-11-24T00:00:00Z",
        },
        "spec": {"containers": [dict(container_of(deployment))]},
        "status": {
            "phase": "Running" if state is None else "Pending",
            "conditions": [{"type": "Ready", "status": "True" if ready and state is None else "False"}],
            "containerStatuses": [
                {
                    "name": labels["languagepipes.io/role"],
                    "state": state or {"running": {"startedAt": "2026-11-24T00:00:00Z"}},
                    "restartCount": 0,
                }
            ],
        },
    }


def with_pods(snapshot: Snapshot, pods: list[Manifest]) -> Snapshot:
    by_name = {pod["metadata"]["name"]: pod for pod in pods}
    return replace(snapshot, children=replace(snapshot.children, pods=by_name))


def living(snapshot: Snapshot, manifests: list[Manifest]) -> Snapshot:
    """The same pipe with these children live."""
    by_name = {
        kind: {manifest["metadata"]["name"]: manifest for manifest in of_kind(manifests, kind)}
        for kind in ("Deployment", "Service", "ConfigMap", "PersistentVolumeClaim", "NetworkPolicy")
    }
    children = Children(
        deployments=by_name["Deployment"],
        services=by_name["Service"],
        config_maps=by_name["ConfigMap"],
        claims=by_name["PersistentVolumeClaim"],
        policies=by_name["NetworkPolicy"],
    )
    return replace(snapshot, children=children)
