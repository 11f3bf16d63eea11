"""An upgraded operator restarts no pod: a Deployment is rendered again only when what shapes its pods changes. Pure.

Each Deployment carries a hash of its inputs (`decide.inputs`) and the manifest as it was rendered for them. While the
hash stays, that manifest is applied again, whatever this version of the operator would render; edits by others are
repaired against it.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import json
import zlib
from dataclasses import dataclass
from typing import Any

from languagepipes_operator.digest import canonical_json
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.names import ANNOTATION_INPUTS, ANNOTATION_RENDERED
from languagepipes_operator.observe.ownership import owner_reference
from languagepipes_operator.observe.snapshot import Snapshot

# Far above any Deployment, far below what would hurt: the annotation may have been edited.
_MAX_RENDERED_BYTES = 512 * 1024


@dataclass(frozen=True)
class LastApplied:
    """A Deployment as it was rendered, and the same manifest packed, as its annotation holds it."""

    manifest: Manifest
    packed: str


def last_applied(snapshot: Snapshot, name: str) -> LastApplied | None:
    """How the live Deployment of that name was rendered; None if there is none, or if nothing usable is stored.

    Usable is only a manifest of this very Deployment of this pipe: a user who may edit a Deployment must not get the
    operator to write anything else.
    """
    live = snapshot.children.deployments.get(name)
    manifest = rendering_of(live)
    if manifest is None or not _is_of(manifest, snapshot, name):
        return None
    return LastApplied(manifest, _annotations(live)[ANNOTATION_RENDERED])


def inputs_of(live: Manifest | None) -> str | None:
    """The hash of the inputs that a live Deployment was rendered for."""
    return _annotations(live).get(ANNOTATION_INPUTS)


def rendering_of(live: Manifest | None) -> Manifest | None:
    """The manifest in a live Deployment's annotation, unchecked; None if none can be read."""
    annotations = _annotations(live)
    if not {ANNOTATION_INPUTS, ANNOTATION_RENDERED} <= annotations.keys():
        return None
    try:
        return unpack(annotations[ANNOTATION_RENDERED])
    except ValueError:
        return None


def pack(manifest: Manifest) -> str:
    """As text that fits into an annotation."""
    return base64.b64encode(gzip.compress(canonical_json(manifest), mtime=0)).decode()


def unpack(text: str) -> Manifest:
    """The inverse of `pack`. Raises ValueError for anything else."""
    try:
        packed = base64.b64decode(text, validate=True)
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            data = file.read(_MAX_RENDERED_BYTES + 1)
        if len(data) > _MAX_RENDERED_BYTES:
            raise ValueError(f"more than {_MAX_RENDERED_BYTES} bytes")
        manifest = json.loads(data)
    except (binascii.Error, OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"no packed manifest: {error}") from error
    if not isinstance(manifest, dict):
        raise ValueError("no packed manifest: not an object")
    return manifest


def container_of(deployment: Manifest | None) -> dict[str, Any]:
    """The first container, which is ours; {} for what is no Deployment with one: others may have edited it."""
    try:
        return {} if deployment is None else dict(deployment["spec"]["template"]["spec"]["containers"][0])
    except (KeyError, IndexError, TypeError, ValueError):
        return {}


def environment_of(deployment: Manifest | None) -> dict[str, Any]:
    """Of that container, by name."""
    return {each.get("name"): each.get("value") for each in container_of(deployment).get("env") or ()}


def _annotations(live: Manifest | None) -> dict[str, str]:
    return dict(((live or {}).get("metadata") or {}).get("annotations") or {})


def _is_of(manifest: Manifest, snapshot: Snapshot, name: str) -> bool:
    metadata = manifest.get("metadata")
    return (
        isinstance(metadata, dict)
        and manifest.get("apiVersion") == "apps/v1"
        and manifest.get("kind") == "Deployment"
        and metadata.get("namespace") == snapshot.pipe.namespace
        and metadata.get("name") == name
        and metadata.get("ownerReferences") == [owner_reference(snapshot)]
    )
