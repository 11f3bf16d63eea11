"""Whole pipes as Kubernetes would show them: objects as the API server, the scheduler and a kubelet 1.37 write them.

Start from `ClusterState()`, which is a Ready pipe of three stages over two nodes, and spoil what the test is about.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from languagepipes_api.member_status import MemberStatus
from languagepipes_api.names import (
    LABEL_MANAGED_BY,
    LABEL_PIPE,
    LABEL_PLAN,
    LABEL_REPLICA,
    LABEL_ROLE,
    LABEL_STAGE,
    LABEL_STAGE_NAME,
    MANAGED_BY,
)
from languagepipes_api.spec import parse_pipe
from languagepipes_operator.decide.rollout import Rollout
from languagepipes_operator.observe.snapshot import Children, Snapshot, StoreReport
from languagepipes_operator.observe.stored_plans import StoredPlan
from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.planning.nodes import Node
from languagepipes_operator.planning.plan import plan
from languagepipes_operator.status.condition_state import condition_in
from languagepipes_operator.status.outcome import Outcome
from languagepipes_operator.status.status import status_of

from support import smollm2_facts

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
UID = "5f1f6f0e-2d6c-4a52-9f0b-0f2f4a4f3b11"
IMAGE = "registry.example/languagepipes-node:0.1.0"
GIB = 2**30

FACTS = replace(smollm2_facts.FACTS, revision="12fd25f77366fa6b3b4b768ec3050bf629380bac", download_bytes=269_060_552)


def at(*, seconds: float = 0) -> str:
    """That long before NOW, as metav1.Time is written."""
    return (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def pipe_of(spec: dict[str, Any] | None = None, *, generation: int = 1) -> dict[str, Any]:
    return {
        "apiVersion": "languagepipes.io/v1alpha1",
        "kind": "LanguagePipe",
        "metadata": {"name": "smol", "namespace": "models", "uid": UID, "generation": generation},
        "spec": {
            "model": {"source": "hf://HuggingFaceTB/SmolLM2-135M-Instruct", "dtype": "float32"},
            "stages": {"count": 3},
            **(spec or {}),
        },
    }


@dataclass
class ClusterState:
    """A Ready pipe. Objects are by the names that `pod` and `deployment` give; change them in place."""

    raw: dict[str, Any] = field(default_factory=pipe_of)
    now: datetime = NOW
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    deployments: dict[str, dict[str, Any]] = field(default_factory=dict)
    claims: dict[str, dict[str, Any]] = field(default_factory=dict)
    services: dict[str, dict[str, Any]] = field(default_factory=dict)
    foreign: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: dict[str, tuple[dict[str, Any], ...]] = field(default_factory=dict)
    members: dict[str, MemberStatus] = field(default_factory=dict)
    nodes: tuple[Node, ...] | None = (Node("n1", 4 * GIB), Node("n2", 8 * GIB))
    store: StoreReport | None = None
    refusal: PlanError | None = None
    conflicts: tuple[str, ...] = ()
    blocking_errors: tuple[str, ...] = ()
    paused: bool = False
    held_back: tuple[str, ...] = ()
    # What autoscaling asks for; whether the stages are stopped since nobody asks.
    desired: int | None = None
    load_unknown: bool = False
    idle: bool = False
    # planned: the stored plan serves the spec; running: the replicas run it though it does not.
    planned: bool = True
    running: bool = False
    # Numbers of replicas; updated: by default those that the spec asks for.
    updated: tuple[int, ...] | None = None
    outdated: tuple[int, ...] = ()
    draining: tuple[int, ...] = ()

    @classmethod
    def ready(cls, spec: dict[str, Any] | None = None, *, generation: int = 1) -> ClusterState:
        cluster = cls(raw=pipe_of(spec, generation=generation))
        cluster.services["smol"] = {"kind": "Service", "metadata": {"name": "smol"}, "spec": {}}
        cluster.add("store", node="n1")
        for replica in range(cluster.raw["spec"].get("replicas", 1)):
            cluster.add_replica(replica)
        return cluster

    def add_replica(self, replica: int) -> None:
        for place, stage in enumerate(self.stored.plan.stages, start=1):
            self.add("stage", replica=replica, stage=place, stage_name=stage.name, node=f"n{1 + place % 2}")
        self.add("end-model", replica=replica, node="n2")

    def add(self, role: str, *, replica: int = 0, stage: int = 0, stage_name: str = "", node: str = "n1") -> None:
        name = member_name(role, replica, stage)
        labels = labels_of(role, replica, stage, stage_name, self.stored.plan.hash)
        self.deployments[name] = deployment(name, labels)
        self.pods[f"{name}-7c9d-x2x4p"] = pod(f"{name}-7c9d-x2x4p", labels, node=node)

    def pod(self, role: str, replica: int = 0, stage: int = 0) -> dict[str, Any]:
        return self.pods[f"{member_name(role, replica, stage)}-7c9d-x2x4p"]

    def deployment(self, role: str, replica: int = 0, stage: int = 0) -> dict[str, Any]:
        return self.deployments[member_name(role, replica, stage)]

    def drop(self, role: str, replica: int = 0, stage: int = 0) -> None:
        del self.pods[f"{member_name(role, replica, stage)}-7c9d-x2x4p"]

    def publish_unready(self, published: bool = True) -> None:
        """As the Service is once the only End Model has been Ready."""
        self.services["smol"]["spec"] = {"publishNotReadyAddresses": published}

    @property
    def stored(self) -> StoredPlan:
        spec = parse_pipe(self.raw, local=False).spec
        return StoredPlan(plan=plan(spec, FACTS), facts=FACTS, node_image=IMAGE, inputs="0f0f0f0f")

    @property
    def snapshot(self) -> Snapshot:
        return Snapshot(
            pipe=parse_pipe(self.raw, local=False),
            raw=self.raw,
            children=Children(
                deployments=deepcopy(self.deployments),
                services=deepcopy(self.services),
                claims=deepcopy(self.claims),
                pods=deepcopy(self.pods),
                foreign=deepcopy(self.foreign),
            ),
            now=self.now,
            nodes=self.nodes,
            store=self.store,
            members=self.members,
            events=self.events,
            desired=self.desired,
            load_unknown=self.load_unknown,
        )

    @property
    def outcome(self) -> Outcome:
        updated = self.updated
        if updated is None:
            updated = tuple(range(self.snapshot.replicas))
        return Outcome(
            idle=self.idle,
            revision="0123456789abcdef",
            rollout=Rollout(updated, self.outdated, self.draining),
            plan=self.stored if self.planned and self.refusal is None else None,
            running=self.stored if self.running else None,
            refusal=self.refusal,
            conflicts=self.conflicts,
            blocking_errors=self.blocking_errors,
            paused=self.paused,
            held_back=self.held_back,
        )

    def status(self, previous: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        return status_of(self.snapshot, self.outcome, previous, **more)


def triple(status: dict[str, Any], kind: str) -> tuple[str, str, str]:
    """(status, reason, message) of that condition."""
    found = condition_in(status, kind)
    return found["status"], found["reason"], found["message"]


def turns(status: dict[str, Any]) -> dict[str, str]:
    """Every condition's status."""
    return {condition["type"]: condition["status"] for condition in status["conditions"]}


def member_name(role: str, replica: int = 0, stage: int = 0) -> str:
    return "smol-store-1a2b3c4d" if role == "store" else f"smol-{role}-{replica}-{stage}-1a2b3c4d"


def labels_of(role: str, replica: int, stage: int, stage_name: str, plan_hash: str) -> dict[str, str]:
    labels = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_PIPE: "smol", LABEL_ROLE: role}
    if role != "store":
        labels |= {LABEL_REPLICA: str(replica), LABEL_PLAN: plan_hash}
    if role == "stage":
        labels |= {LABEL_STAGE: str(stage), LABEL_STAGE_NAME: stage_name}
    return labels


def deployment(name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": name,
            "namespace": "models",
            "labels": labels,
            "generation": 1,
            "creationTimestamp": at(seconds=600),
        },
        "spec": {"replicas": 1, "strategy": {"type": "Recreate"}},
        "status": {
            "observedGeneration": 1,
            "replicas": 1,
            "updatedReplicas": 1,
            "readyReplicas": 1,
            "availableReplicas": 1,
            "conditions": [
                {
                    "type": "Available",
                    "status": "True",
                    "reason": "MinimumReplicasAvailable",
                    "message": "Deployment has minimum availability.",
                    "lastTransitionTime": at(seconds=500),
                    "lastUpdateTime": at(seconds=500),
                },
                {
                    "type": "Progressing",
                    "status": "True",
                    "reason": "NewReplicaSetAvailable",
                    "message": f'ReplicaSet "{name}-7c9d" has successfully progressed.',
                    "lastTransitionTime": at(seconds=600),
                    "lastUpdateTime": at(seconds=500),
                },
            ],
        },
    }


def pod(name: str, labels: dict[str, str], *, node: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "models",
            "labels": {**labels, "pod-template-hash": "7c9d"},
            "creationTimestamp": at(seconds=600),
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name.rsplit("-", 1)[0], "controller": True}
            ],
        },
        "spec": {
            "nodeName": node,
            "containers": [
                {
                    "name": labels[LABEL_ROLE],
                    "image": IMAGE,
                    "resources": {
                        "limits": {"memory": "1Gi"},
                        "requests": {"cpu": "100m", "memory": "1Gi"},
                    },
                }
            ],
        },
        "status": {
            "phase": "Running",
            "conditions": [
                pod_condition("PodReadyToStartContainers", "True"),
                pod_condition("Initialized", "True"),
                pod_condition("Ready", "True"),
                pod_condition("ContainersReady", "True"),
                pod_condition("PodScheduled", "True"),
            ],
            "containerStatuses": [
                {
                    "name": labels[LABEL_ROLE],
                    "image": IMAGE,
                    "imageID": "sha256:8f5d",
                    "ready": True,
                    "started": True,
                    "restartCount": 0,
                    "state": {"running": {"startedAt": at(seconds=590)}},
                    "lastState": {},
                }
            ],
            "qosClass": "Burstable",
            "startTime": at(seconds=600),
        },
    }


def pod_condition(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, Any]:
    told = {"type": kind, "status": status, "lastProbeTime": None, "lastTransitionTime": at(seconds=500)}
    return told | ({"reason": reason} if reason else {}) | ({"message": message} if message else {})


def unready(pod: dict[str, Any]) -> dict[str, Any]:
    """Its container runs and its probe fails."""
    for condition in pod["status"]["conditions"]:
        if condition["type"] in ("Ready", "ContainersReady"):
            condition |= {
                "status": "False",
                "reason": "ContainersNotReady",
                "message": "containers with unready status: [stage]",
            }
    for status in pod["status"]["containerStatuses"]:
        status |= {"ready": False}
    return pod


def never_ready(pod: dict[str, Any]) -> dict[str, Any]:
    """Of a pod that is not ready: its process has not been, since it started."""
    for condition in pod["status"]["conditions"]:
        if condition["type"] in ("Ready", "ContainersReady"):
            condition |= {"lastTransitionTime": at(seconds=600)}
    return pod


def waiting(pod: dict[str, Any], reason: str, message: str = "") -> dict[str, Any]:
    """Its container waits to be started."""
    unready(pod)
    if not pod["status"]["containerStatuses"][0]["restartCount"]:
        pod["status"]["phase"] = "Pending"
    state = {"reason": reason} | ({"message": message} if message else {})
    pod["status"]["containerStatuses"][0] |= {"state": {"waiting": state}, "started": False}
    return pod


def ended(
    pod: dict[str, Any],
    *,
    code: int,
    reason: str = "Error",
    message: str = "",
    restarts: int = 1,
    back_off: bool = False,
) -> dict[str, Any]:
    """Its container ended, and runs again since ten seconds or waits for the kubelet to start it again."""
    unready(pod)
    last = {"exitCode": code, "reason": reason, "startedAt": at(seconds=60), "finishedAt": at(seconds=12)}
    status = pod["status"]["containerStatuses"][0]
    status |= {
        "restartCount": restarts,
        "lastState": {"terminated": last | ({"message": message} if message else {})},
        "state": {"running": {"startedAt": at(seconds=10)}},
    }
    if back_off:
        said = f"back-off 20s restarting failed container=stage pod={pod['metadata']['name']}_models(0c5b)"
        status["state"] = {"waiting": {"reason": "CrashLoopBackOff", "message": said}}
    return pod


def unscheduled(pod: dict[str, Any], message: str) -> dict[str, Any]:
    del pod["spec"]["nodeName"]
    pod["status"] = {
        "phase": "Pending",
        "conditions": [pod_condition("PodScheduled", "False", "Unschedulable", message)],
        "qosClass": "Burstable",
    }
    return pod


def warning(reason: str, message: str, *, seconds: float = 5) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "type": "Warning",
        "reason": reason,
        "message": message,
        "lastTimestamp": at(seconds=seconds),
    }


def later(cluster: ClusterState, *, seconds: float) -> ClusterState:
    return replace(cluster, now=cluster.now + timedelta(seconds=seconds))


Spoil = Callable[[ClusterState], None]
