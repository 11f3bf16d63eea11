"""A Deployment with its annotations: its last applied manifest where the decision keeps that, else a new one. One whose
replica goes says so, and has no pod once it is stopped.
"""

from __future__ import annotations

from collections.abc import Callable

from languagepipes_operator.decide.decision import DeploymentDecision
from languagepipes_operator.decide.last_applied import pack
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.names import (
    ANNOTATION_DRAINING,
    ANNOTATION_GAVE_WAY,
    ANNOTATION_INPUTS,
    ANNOTATION_RENDERED,
)


def deployment_of(decided: DeploymentDecision, render: Callable[[DeploymentDecision], Manifest]) -> Manifest:
    """render: makes the manifest without those annotations; called only where a new one is needed."""
    last = decided.last_applied
    if last is not None:
        return _annotated(last.manifest, decided, last.packed)
    manifest = render(decided)
    return _annotated(manifest, decided, pack(manifest))


def _annotated(manifest: Manifest, decided: DeploymentDecision, packed: str) -> Manifest:
    metadata = manifest["metadata"]
    ours = {ANNOTATION_INPUTS: decided.inputs, ANNOTATION_RENDERED: packed}
    if decided.draining:
        ours[ANNOTATION_DRAINING] = "true"
    if decided.gave_way:
        ours[ANNOTATION_GAVE_WAY] = decided.gave_way
    if decided.stopped:
        manifest = {**manifest, "spec": {**manifest["spec"], "replicas": 0}}
    annotations = {**metadata.get("annotations", {}), **ours}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}
