"""Why the cache's volume is not there: from its PersistentVolumeClaim and the volume controller's events.

A claim that waits for its first consumer is no failure: then the scheduler reports why the pod waits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.ownership import time_of
from languagepipes_operator.status.failures import Failure, failure, quoted

# The default StorageClass is filled in at creation, or by the controller soon after one appears.
_DEFAULT_GRACE = timedelta(seconds=5)
_CLASS_MISSING = re.compile(r'storageclass\.storage\.k8s\.io "([^"]+)" not found')


def volume_failures(
    claims: Mapping[str, Manifest], events: Mapping[str, Sequence[Manifest]], *, now: datetime
) -> Iterator[Failure]:
    """Of the pipe's own claims; one that a pvc:// source names belongs to the user: the scheduler reports it."""
    for name, claim in sorted(claims.items()):
        phase = claim.get("status", {}).get("phase")
        if phase == "Lost":
            yield failure(
                "VolumeLost",
                f"the cache's claim {name} lost its volume: delete the claim (kubectl delete pvc {name}); the operator "
                "creates a new one and downloads the weights again",
            )
        elif phase == "Pending":
            yield from _pending(name, claim, events.get(f"PersistentVolumeClaim/{name}", ()), now)


def _pending(name: str, claim: Manifest, events: Sequence[Manifest], now: datetime) -> Iterator[Failure]:
    storage_class = claim.get("spec", {}).get("storageClassName")
    said = next((str(event.get("message", "")) for event in events if event.get("reason") == "ProvisioningFailed"), "")
    missing = _CLASS_MISSING.search(said)
    if missing:
        yield failure(
            "MissingStorageClass",
            f"the cache's claim {name} asks for the StorageClass {missing[1]}, which does not exist: create it, or "
            f"correct spec.cache.storageClassName and delete the claim (kubectl delete pvc {name})",
        )
    elif said:
        yield failure(
            "ProvisioningFailed",
            f"the cache's claim {name} gets no volume from StorageClass {storage_class} "
            f"({quoted(said)}): correct the cause, or name another class in spec.cache.storageClassName",
        )
    elif not storage_class and _older(claim, now):
        yield failure(
            "NoDefaultStorageClass",
            f"the cache's claim {name} names no StorageClass, and the cluster has no default one: set "
            f"spec.cache.storageClassName and delete the claim (kubectl delete pvc {name}), or mark a class as default",
        )


def _older(claim: Manifest, now: datetime) -> bool:
    created = time_of(claim["metadata"].get("creationTimestamp"))
    return created is not None and now - created > _DEFAULT_GRACE
