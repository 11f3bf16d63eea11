"""The PodDisruptionBudget: a drain takes one ring member at a time, and a sick one at any time."""

from __future__ import annotations

from languagepipes_operator import names
from languagepipes_operator.children.labels import labels, metadata, ring_selector
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Snapshot


def disruption_budget(snapshot: Snapshot) -> Manifest:
    """The store is outside: a running ring needs none, and one that fetches for hours must not block a drain."""
    pipe = snapshot.pipe.name
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(snapshot, names.budget(pipe), labels(pipe, "ring")),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": ring_selector(pipe),
        },
    }
