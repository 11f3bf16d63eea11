"""Which pipe owns an object, and which member (store, stage, End Model) an object belongs to. Pure.

Owner references say whose an object is. Labels say which member it belongs to, never names: those end in a hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from languagepipes_api.names import (
    API_GROUP,
    API_VERSION,
    FURTHER_STORE,
    KIND,
    LABEL_PLAN,
    LABEL_REPLICA,
    LABEL_ROLE,
    LABEL_STAGE,
    LABEL_STAGE_NAME,
    LABEL_STORE,
    Identity,
)
from languagepipes_api.plan import Plan
from languagepipes_api.spec import LanguagePipe

from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Children, Snapshot


@dataclass(frozen=True)
class Member:
    """One member, as wanted. stage: 1-based place, 0 for others; title: its name in messages.

    pod: the newest that is neither being deleted nor finished, if any. past: the others, newest first.
    """

    title: str
    role: str
    replica: int
    stage: int
    deployment: Manifest | None
    pod: Manifest | None
    past: tuple[Manifest, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether its pod is Ready and made from the Deployment as it stands, not from an earlier one."""
        return self.pod is not None and is_ready(self.pod) and self.rolled_out

    @property
    def rolled_out(self) -> bool:
        """Whether the Deployment's controller has seen its newest form, and no pod of an earlier one counts."""
        if self.deployment is None:
            return False
        status = self.deployment.get("status", {})
        seen = status.get("observedGeneration", 0) >= self.deployment["metadata"].get("generation", 0)
        return bool(seen and status.get("updatedReplicas", 0) >= 1)

    @property
    def node(self) -> str:
        return "" if self.pod is None else str(self.pod.get("spec", {}).get("nodeName", ""))

    @property
    def restarts(self) -> int:
        return 0 if self.pod is None else sum(status.get("restartCount", 0) for status in container_statuses(self.pod))


def owner_reference(snapshot: Snapshot) -> Manifest:
    """What every child of the pipe carries: it is deleted with the pipe, and deleting the pipe does not wait for it."""
    return {
        "apiVersion": f"{API_GROUP}/{API_VERSION}",
        "kind": KIND,
        "name": snapshot.pipe.name,
        "uid": snapshot.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def controller_of(item: Manifest) -> Manifest | None:
    """The owner reference of an object's controller."""
    references = item["metadata"].get("ownerReferences") or ()
    return next((reference for reference in references if reference.get("controller")), None)


def owned_by(item: Manifest, uid: str) -> bool:
    """Whether the pipe of that UID is its controller."""
    controller = controller_of(item)
    return controller is not None and controller.get("uid") == uid and controller.get("kind") == KIND


def identity_of(deployment: Manifest, pipe: LanguagePipe) -> Identity | None:
    """The stage or End Model whose Deployment it is; None for any other Deployment."""
    role, replica, stage = (
        label(deployment, LABEL_ROLE),
        label(deployment, LABEL_REPLICA),
        label(deployment, LABEL_STAGE),
    )
    if role == "stage" and replica.isdecimal() and stage.isdecimal():
        return Identity(pipe.namespace, pipe.name, int(replica), "stage", int(stage))
    if role == "end-model" and replica.isdecimal():
        return Identity(pipe.namespace, pipe.name, int(replica), "end-model")
    return None


def store_of(children: Children, key: str) -> Member:
    """The weights store of that key, wanted whether or not there is a plan."""
    return _member(children, title="the weights store", role="store", store=key)


def store_keys(children: Children) -> tuple[str, ...]:
    """Of all stores that have a Deployment."""
    return tuple(sorted(label(each, LABEL_STORE) for each in children.deployments.values() if is_store(each)))


def is_store(thing: Manifest) -> bool:
    """Whether a Deployment or a pod is one of a weights store."""
    return label(thing, LABEL_ROLE) in ("store", FURTHER_STORE)


def replica_of(children: Children, plan: Plan, replica: int, *, replicas: int) -> tuple[Member, ...]:
    """The members of one replica that runs `plan`: its stages in order, the End Model last."""
    of = f" of replica {replica}" if replicas > 1 else ""
    stages = tuple(
        _member(children, title=f"stage {stage.name}{of}", role="stage", replica=replica, stage=place, plan=plan.hash)
        for place, stage in enumerate(plan.stages, start=1)
    )
    end = _member(children, title=f"the End Model{of}", role="end-model", replica=replica, plan=plan.hash)
    return (*stages, end)


def member_of(children: Children, deployment: Manifest) -> Member:
    """The stage or End Model whose Deployment it is, of any plan."""
    role, stage, replica = (label(deployment, name) for name in (LABEL_ROLE, LABEL_STAGE, LABEL_REPLICA))
    name = label(deployment, LABEL_STAGE_NAME) or stage
    return _member(
        children,
        title=f"{f'stage {name}' if role == 'stage' else 'the End Model'} of replica {replica}",
        role=role,
        replica=int(replica) if replica.isdecimal() else None,
        stage=int(stage) if stage.isdecimal() else 0,
        plan=label(deployment, LABEL_PLAN),
    )


def end_models(children: Children) -> tuple[Manifest, ...]:
    """The End Models' pods of every plan and replica that are neither ending nor over."""
    return tuple(pod for pod in children.pods.values() if label(pod, LABEL_ROLE) == "end-model" and is_active(pod))


def label(thing: Manifest, name: str) -> str:
    return str((thing["metadata"].get("labels") or {}).get(name, ""))


def annotations_of(thing: Manifest) -> dict[str, str]:
    return dict(thing["metadata"].get("annotations") or {})


def role_of(thing: Manifest) -> str:
    """The role of the process in it, after which its container is named."""
    return "store" if is_store(thing) else label(thing, LABEL_ROLE)


def is_active(pod: Manifest) -> bool:
    """Neither being deleted nor over."""
    return pod["metadata"].get("deletionTimestamp") is None and not is_over(pod)


def is_over(pod: Manifest) -> bool:
    """Whether none of its containers runs or will run again."""
    return pod.get("status", {}).get("phase") in ("Failed", "Succeeded")


def is_ready(pod: Manifest) -> bool:
    return pod_condition(pod, "Ready").get("status") == "True"


def pod_condition(pod: Manifest, kind: str) -> Manifest:
    """The pod's (or Deployment's) condition of that type, or an empty mapping."""
    for condition in pod.get("status", {}).get("conditions") or ():
        if condition.get("type") == kind:
            return dict(condition)
    return {}


def container_statuses(pod: Manifest) -> tuple[dict[str, Any], ...]:
    """Of init containers first, since they run first."""
    status = pod.get("status", {})
    return tuple(status.get("initContainerStatuses") or ()) + tuple(status.get("containerStatuses") or ())


def own_container(pod: Manifest) -> dict[str, Any]:
    """The status of the member's own container, which is named after its role; sidecars may be injected."""
    role = role_of(pod)
    return next((status for status in container_statuses(pod) if status.get("name") == role), {})


def was_ready(pod: Manifest) -> bool:
    """Of a pod that is not Ready: whether its process was, before. It is not Ready since the process started, else."""
    turned = time_of(pod_condition(pod, "Ready").get("lastTransitionTime"))
    started = time_of(container_state(own_container(pod), "running").get("startedAt"))
    return turned is not None and started is not None and turned > started


def container_state(status: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Its state's "waiting", "running" or "terminated", or an empty mapping."""
    return dict((status.get("state") or {}).get(kind) or {})


def title(item: Manifest) -> str:
    """ "Kind/name"."""
    return f"{item['kind']}/{item['metadata']['name']}"


def name_of(thing: Manifest) -> str:
    return str(thing["metadata"].get("name", ""))


def time_of(text: object) -> datetime | None:
    """A metav1.Time; None for anything else."""
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None


def _member(
    children: Children,
    *,
    title: str,
    role: str,
    replica: int | None = None,
    stage: int = 0,
    plan: str = "",
    store: str | None = None,
) -> Member:
    def mine(thing: Manifest) -> bool:
        return (
            role_of(thing) == role
            and (store is None or label(thing, LABEL_STORE) == store)
            and (replica is None or label(thing, LABEL_REPLICA) == str(replica))
            and (not stage or label(thing, LABEL_STAGE) == str(stage))
            and (not plan or label(thing, LABEL_PLAN) == plan)
        )

    pods = _newest_first(filter(mine, children.pods.values()))
    active = [pod for pod in pods if is_active(pod)]
    deployments = _newest_first(filter(mine, children.deployments.values()))
    chosen = active[0] if active else None
    return Member(
        title=title,
        role=role,
        replica=replica or 0,
        stage=stage,
        deployment=deployments[0] if deployments else None,
        pod=chosen,
        past=tuple(pod for pod in pods if pod is not chosen),
    )


def _newest_first(things: Iterable[Manifest]) -> list[Manifest]:
    # The name settles ties, so that equal snapshots give equal answers.
    return sorted(
        things,
        key=lambda thing: (thing["metadata"].get("creationTimestamp", ""), thing["metadata"].get("name", "")),
        reverse=True,
    )
