"""Which End Models the pipe's Service leads to: those that are Ready; and one whose ring is down, so that requests wait
there, if it is the only one. Pure.

The Service leads to an End Model that is not Ready by `publishNotReadyAddresses`, so to all that are not, also to those
that start or end.
"""

from __future__ import annotations

from languagepipes_api.names import LABEL_ROLE

from languagepipes_operator import names
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.ownership import is_active, is_over, is_ready, label, name_of, was_ready
from languagepipes_operator.observe.snapshot import Snapshot


def publishes_unready(snapshot: Snapshot) -> bool:
    """Whether the Service is to lead to End Models that are not Ready as well.

    So it is from the moment on at which the pipe's only End Model is Ready, not only once its ring is down: no request
    is refused in between.
    """
    pod = _the_only_one(snapshot)
    return pod is not None and (is_ready(pod) or _takes_them(pod, snapshot))


def takes_requests(pod: Manifest, snapshot: Snapshot) -> bool:
    """Whether the Service leads to this End Model, and it does not refuse them."""
    if is_ready(pod):
        return True
    only = _the_only_one(snapshot)
    is_it = only is not None and name_of(only) == name_of(pod)
    return is_it and _is_published(snapshot) and _takes_them(pod, snapshot)


def _the_only_one(snapshot: Snapshot) -> Manifest | None:
    """The End Model's pod, if there is no other, not even one that is being deleted."""
    pods = [
        pod for pod in snapshot.children.pods.values() if label(pod, LABEL_ROLE) == "end-model" and not is_over(pod)
    ]
    return pods[0] if len(pods) == 1 and is_active(pods[0]) else None


def _takes_them(pod: Manifest, snapshot: Snapshot) -> bool:
    """Of one that is not Ready, by its own word: requests wait, or the ring is up again and the kubelet's next probe
    will find it so. Silence changes nothing as long as its process is the one that was Ready.
    """
    report = snapshot.members.get(name_of(pod))
    if report is None:
        return _is_published(snapshot) and was_ready(pod)
    return report.state == "ready" and (report.recovering or report.ring_ready)


def _is_published(snapshot: Snapshot) -> bool:
    live = snapshot.children.services.get(names.api_service(snapshot.pipe.name), {})
    return bool(live.get("spec", {}).get("publishNotReadyAddresses"))
