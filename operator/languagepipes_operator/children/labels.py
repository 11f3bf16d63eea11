"""Labels and metadata of children. The keys of labels are api's (`languagepipes_api.names`)."""

from __future__ import annotations

from typing import Any

from languagepipes_api.names import (
    FURTHER_STORE,
    LABEL_MANAGED_BY,
    LABEL_PIPE,
    LABEL_PLAN,
    LABEL_REPLICA,
    LABEL_ROLE,
    LABEL_STAGE,
    LABEL_STAGE_NAME,
    LABEL_STORE,
    MANAGED_BY,
)

from languagepipes_operator.observe.ownership import owner_reference
from languagepipes_operator.observe.snapshot import Snapshot

# How policies know the operator's own pods: what the chart sets whatever the release is called.
OPERATOR_LABELS = {"app.kubernetes.io/part-of": "languagepipes", "app.kubernetes.io/component": "operator"}

RING_ROLES = ("stage", "end-model")


def labels(
    pipe: str,
    role: str,
    *,
    replica: int | None = None,
    stage: int | None = None,
    stage_name: str | None = None,
    plan: str | None = None,
    store: str | None = None,
) -> dict[str, str]:
    """A child's labels; role: a Role or "plan", "ring", "api", …"""
    found: dict[str, str | int | None] = {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_PIPE: pipe,
        LABEL_ROLE: role,
        LABEL_REPLICA: replica,
        LABEL_STAGE: stage,
        LABEL_STAGE_NAME: stage_name,
        LABEL_PLAN: plan,
        LABEL_STORE: store,
    }
    return {key: str(value) for key, value in found.items() if value is not None}


def store_labels(pipe: str, key: str = "") -> dict[str, str]:
    """What everything of one store carries, and selects its pods. key: which of the pipe's stores (`decide.stores`)."""
    if not key:
        return labels(pipe, "store")
    return labels(pipe, FURTHER_STORE, store=key)


def ring_selector(pipe: str) -> dict[str, Any]:
    """A label selector for the stages and End Models of a pipe, of all replicas and plans."""
    return {
        "matchLabels": labels_of_pipe(pipe),
        "matchExpressions": [{"key": LABEL_ROLE, "operator": "In", "values": list(RING_ROLES)}],
    }


def labels_of_pipe(pipe: str) -> dict[str, str]:
    """What all children of a pipe carry."""
    return {LABEL_MANAGED_BY: MANAGED_BY, LABEL_PIPE: pipe}


def metadata(snapshot: Snapshot, name: str, child_labels: dict[str, str]) -> dict[str, Any]:
    """A child's metadata: it goes with the pipe, and deleting the pipe waits for nothing."""
    return {
        "name": name,
        "namespace": snapshot.pipe.namespace,
        "labels": child_labels,
        "ownerReferences": [owner_reference(snapshot)],
    }
