"""A Deployment with its annotations: its last applied manifest where the decision keeps that, else a new one."""

from __future__ import annotations

from collections.abc import Callable

from languagepipes_operator.decide.decision import DeploymentDecision
from languagepipes_operator.decide.last_applied import pack
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.names import ANNOTATION_INPUTS, ANNOTATION_RENDERED


def deployment_of(decided: DeploymentDecision, render: Callable[[DeploymentDecision], Manifest]) -> Manifest:
    """render: makes the manifest without those annotations; called only where a new one is needed."""
    last = decided.last_applied
    if last is not None:
        return _annotated(last.manifest, decided.inputs, last.packed)
    manifest = render(decided)
    return _annotated(manifest, decided.inputs, pack(manifest))


def _annotated(manifest: Manifest, inputs: str, packed: str) -> Manifest:
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), ANNOTATION_INPUTS: inputs, ANNOTATION_RENDERED: packed}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}
