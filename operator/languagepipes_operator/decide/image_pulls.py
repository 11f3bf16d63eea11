"""Whether the image that members run can be pulled, as the status of their pods shows it. Pure.

An image that pods have run is not given up for one failed pull: a registry may be unreachable for a moment.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.ownership import (
    container_state,
    is_active,
    own_container,
    pod_condition,
    role_of,
    time_of,
)

# How long a pod may wait for an image that another pod has run.
PATIENCE = timedelta(minutes=2)
# As kubelet 1.37 spells them (pkg/kubelet/images/types.go).
_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)


def cannot_be_pulled(image: str, deployments: Iterable[Manifest], pods: Iterable[Manifest], *, now: datetime) -> bool:
    """Whether a pod waits in vain for this image: no pod has run it, or the pod has waited for as long as PATIENCE.

    deployments, pods: of the members that are to run the image.
    """
    asking = [pod for pod in pods if image_of(pod, pod.get("spec")) == image]
    waiting = [pod for pod in asking if is_active(pod) and _waits(pod)]
    if not waiting:
        return False
    if not any(map(_has_run, asking)) and not any(_was_available(each, image) for each in deployments):
        return True
    return any(_waits_since(pod, now) + PATIENCE <= now for pod in waiting)


def image_of(owner: Manifest, pod_spec: Any) -> str:
    """The image of the member's own container in this pod (or template); sidecars may be injected. "" if none."""
    role = role_of(owner)
    containers = (pod_spec or {}).get("containers") or ()
    return next((str(each.get("image", "")) for each in containers if each.get("name") == role), "")


def _waits(pod: Manifest) -> bool:
    return container_state(own_container(pod), "waiting").get("reason") in _REASONS


def _has_run(pod: Manifest) -> bool:
    status = own_container(pod)
    started = container_state(status, "running") or container_state(status, "terminated")
    return bool(started or status.get("lastState") or status.get("restartCount"))


def _was_available(deployment: Manifest, image: str) -> bool:
    """Whether a pod of its present form was Ready once, though it may be gone: that condition stays."""
    status, template = deployment.get("status") or {}, deployment.get("spec", {}).get("template") or {}
    return bool(
        image_of(deployment, template.get("spec")) == image
        and status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
        and pod_condition(deployment, "Progressing").get("reason") == "NewReplicaSetAvailable"
    )


def _waits_since(pod: Manifest, now: datetime) -> datetime:
    """Since when it is on its node; the pull is not dated."""
    since = pod_condition(pod, "PodScheduled").get("lastTransitionTime") or pod["metadata"].get("creationTimestamp")
    return time_of(since) or now
