"""Which replicas a pipe has, who belongs to each, and how each is. Pure.

A replica keeps its number as long as it exists, and no other gets it before its last pod is gone: certificates, host
names and epochs of two replicas never meet.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from languagepipes_api.member_settings import PREFIX
from languagepipes_api.names import LABEL_REPLICA, LABEL_ROLE, Identity
from languagepipes_api.plan import Plan
from languagepipes_api.spec import LanguagePipe

from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.names import ANNOTATION_DRAINING, ANNOTATION_GAVE_WAY
from languagepipes_operator.observe.ownership import (
    annotations_of,
    is_over,
    label,
    member_of,
    name_of,
    pod_condition,
    time_of,
)
from languagepipes_operator.observe.snapshot import Children, Snapshot

_SCALES_TO_ZERO = f"{PREFIX}SCALES_TO_ZERO"


def ring(pipe: LanguagePipe, plan: Plan, replica: int) -> list[Identity]:
    """A replica's members in the order of the pass: the stages, then the End Model."""
    stages = [Identity(pipe.namespace, pipe.name, replica, "stage", place) for place in range(1, len(plan.stages) + 1)]
    return [*stages, Identity(pipe.namespace, pipe.name, replica, "end-model")]


def existing(children: Children) -> tuple[int, ...]:
    """The numbers of all replicas that have a Deployment, ascending."""
    return _numbers(children.deployments.values())


def taken(children: Children) -> tuple[int, ...]:
    """The numbers that a pod has, though its Deployment may be gone."""
    return _numbers(filter(_is_there, children.pods.values()))


def deployments_of(children: Children, replica: int) -> list[Manifest]:
    """By name."""
    found = [each for each in children.deployments.values() if label(each, LABEL_REPLICA) == str(replica)]
    return sorted(found, key=name_of)


def is_draining(children: Children, replica: int) -> bool:
    """Whether it was told to go."""
    return any(ANNOTATION_DRAINING in annotations_of(each) for each in deployments_of(children, replica))


def has_ended(children: Children, replica: int, role: str | None = None) -> bool:
    """Whether a replica's members (of that role, if one is given) were stopped, and their pods are gone."""

    def counts(thing: Manifest) -> bool:
        return label(thing, LABEL_REPLICA) == str(replica) and role in (None, label(thing, LABEL_ROLE))

    pods = any(counts(pod) and _is_there(pod) for pod in children.pods.values())
    return not pods and all(map(_is_stopped, filter(counts, children.deployments.values())))


def ready_since(children: Children, replica: int) -> datetime | None:
    """Since when every member that has a Deployment is ready; None while one is not, or the End Model has none."""
    deployments = deployments_of(children, replica)
    members = [member_of(children, each) for each in deployments]
    if not any(label(each, LABEL_ROLE) == "end-model" for each in deployments):
        return None
    if not all(member.ready for member in members):
        return None
    times = [
        time_of(pod_condition(member.pod, "Ready").get("lastTransitionTime"))
        for member in members
        if member.pod is not None
    ]
    return max((each for each in times if each is not None), default=None)


def holds_requests(snapshot: Snapshot, replica: int) -> bool:
    """Whether its End Model was ready, and is, or was so recently that requests may still wait there
    (`spec.recovery.maxWaitSeconds`). Its Deployment knows, also while the pod is another one by now. At one that may be
    without stages requests wait while these are stopped, however long that is, and from when they are started again.
    """
    children, now = snapshot.children, snapshot.now
    patience = timedelta(seconds=snapshot.pipe.spec.recovery.max_wait_seconds)
    for live in deployments_of(children, replica):
        if label(live, LABEL_ROLE) != "end-model" or not _has_served(live):
            continue
        available = pod_condition(live, "Available")
        since = time_of(available.get("lastTransitionTime"))
        if available.get("status") == "True" or since is None or since + patience > now:
            return True
        if may_be_without_stages(children, replica) and (
            stages_are_stopped(children, replica) or stages_since(children, replica, now) + patience > now
        ):
            return True
    return False


def may_be_without_stages(children: Children, replica: int) -> bool:
    """Whether its End Model was told that stages may be away (`autoscaling.minReplicas: 0`), and has been ready."""
    return any(
        variable.get("name") == _SCALES_TO_ZERO and variable.get("value") == "true"
        for each in deployments_of(children, replica)
        if label(each, LABEL_ROLE) == "end-model" and _has_served(each)
        for container in _containers(each)
        for variable in container.get("env") or ()
    )


def stages_are_stopped(children: Children, replica: int) -> bool:
    """Whether it has stages, and none of them is to have a pod."""
    stages = _stages(children, replica)
    return bool(stages) and all(each["spec"].get("replicas") == 0 for each in stages)


def stages_since(children: Children, replica: int, now: datetime) -> datetime:
    """When the last of its stages became ready, or was lost; now, where a Deployment's controller has not seen that:
    without replicas it is available.
    """
    times = []
    for each in _stages(children, replica):
        available = pod_condition(each, "Available")
        seen = available.get("status") == "False" or member_of(children, each).ready
        times.append((time_of(available.get("lastTransitionTime")) if seen else None) or now)
    return max(times, default=now)


def open_requests(snapshot: Snapshot, replica: int) -> int | None:
    """Running and waiting, by its End Model's own word; None where it was not asked."""
    for pod in snapshot.children.pods.values():
        report = snapshot.members.get(name_of(pod))
        mine = label(pod, LABEL_REPLICA) == str(replica) and label(pod, LABEL_ROLE) == "end-model"
        if mine and report is not None and report.open_requests is not None:
            return report.open_requests
    return None


def _has_served(end_model: Manifest) -> bool:
    """Whether there was a Ready pod of the Deployment, and there is to be one now. A Deployment without replicas is
    complete too, so of one that gave way nothing is known before a pod of it is Ready.
    """
    available = pod_condition(end_model, "Available").get("status") == "True"
    gave_way = ANNOTATION_GAVE_WAY in annotations_of(end_model)
    was = pod_condition(end_model, "Progressing").get("reason") == "NewReplicaSetAvailable"
    return was and (available or not gave_way) and end_model["spec"].get("replicas") != 0


def _stages(children: Children, replica: int) -> list[Manifest]:
    return [each for each in deployments_of(children, replica) if label(each, LABEL_ROLE) == "stage"]


def _containers(deployment: Manifest) -> list[Manifest]:
    found: list[Manifest] = deployment["spec"].get("template", {}).get("spec", {}).get("containers") or []
    return found


def _is_there(pod: Manifest) -> bool:
    """One that is being deleted is, until it is gone: also if its containers have ended. One that was evicted stays for
    people to look at.
    """
    return not is_over(pod) or "deletionTimestamp" in pod["metadata"]


def _is_stopped(deployment: Manifest) -> bool:
    status, metadata = deployment.get("status") or {}, deployment["metadata"]
    seen = status.get("observedGeneration", 0) >= metadata.get("generation", 0)
    return deployment["spec"].get("replicas") == 0 and seen and not status.get("replicas")


def _numbers(things: Iterable[Manifest]) -> tuple[int, ...]:
    found = {label(thing, LABEL_REPLICA) for thing in things}
    return tuple(sorted(int(number) for number in found if number.isdecimal()))
