"""Which End Models the pipe's Service leads to: those that are Ready; and one whose ring is down, so that requests wait
there, where there is no other that could answer instead. Pure.
"""

from __future__ import annotations

from languagepipes_api.names import LABEL_ROLE

from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.ownership import is_active, is_ready, label, name_of
from languagepipes_operator.observe.snapshot import Snapshot


def publishes_unready(snapshot: Snapshot) -> bool:
    """Whether the Service leads to End Models that are not Ready as well.

    So it is from the moment on at which the pipe's only End Model is Ready, not only once its ring is down: no request
    is refused in between. It is not so while another End Model starts or ends, since the Service would lead to that one
    too.
    """
    pod = _the_only_one(snapshot)
    return pod is not None and (is_ready(pod) or _takes_them(pod, snapshot))


def takes_requests(pod: Manifest, snapshot: Snapshot) -> bool:
    """Whether the Service leads to this End Model."""
    only = _the_only_one(snapshot)
    return is_ready(pod) or (only is not None and name_of(only) == name_of(pod) and _takes_them(pod, snapshot))


def _the_only_one(snapshot: Snapshot) -> Manifest | None:
    """The End Model's pod, if there is no other, not even one that is being deleted."""
    pods = [
        pod for pod in snapshot.children.pods.values() if label(pod, LABEL_ROLE) == "end-model" and not _is_over(pod)
    ]
    return pods[0] if len(pods) == 1 and is_active(pods[0]) else None


def _is_over(pod: Manifest) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _takes_them(pod: Manifest, snapshot: Snapshot) -> bool:
    """By its own word: requests wait, or the ring is up again and the kubelet's next probe will find it so."""
    report = snapshot.members.get(name_of(pod))
    return report is not None and report.state == "ready" and (report.recovering or report.ring_ready)
