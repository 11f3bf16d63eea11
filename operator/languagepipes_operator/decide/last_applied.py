"""An upgraded operator restarts nothing: a Deployment is rendered anew only when what shapes its pods changes.

Each Deployment carries a hash of its inputs and itself as first rendered. While a live one's inputs are the wanted
ones, its own rendering is the wanted one, whatever this version would render; drift is repaired against that. So the
inputs must never hold the operator's version, nor anything that changes with it; what goes into them is part of the
contract between versions.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Mapping
from typing import Any

from languagepipes_operator.children.labels import ANNOTATION_INPUTS, ANNOTATION_RENDERED
from languagepipes_operator.observe.snapshot import Manifest

# Far above any Deployment, far below what would hurt: the annotation may have been edited.
_MAX_RENDERED_BYTES = 512 * 1024


def digest(value: object) -> str:
    """16 hex digits of a JSON value's SHA-256, the same for the same value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:16]


def canonical_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


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


def settled(rendered: Manifest, inputs: Mapping[str, Any], live: Manifest | None) -> Manifest:
    """The manifest to apply: `rendered` for these inputs, or the live object's own rendering for the same.

    The live one's is believed only where it is about the same object of the same owner: whoever may edit a
    Deployment must not get the operator to write anything else.
    """
    wanted = digest(inputs)
    kept = rendering_of(live)
    if kept is not None and _same_object(kept, rendered) and _annotations(live)[ANNOTATION_INPUTS] == wanted:
        return _annotated(kept, wanted, _annotations(live)[ANNOTATION_RENDERED])
    return _annotated(rendered, wanted, pack(rendered))


def is_for(live: Manifest | None, inputs: Mapping[str, Any]) -> bool:
    """Whether a live object was rendered for these inputs."""
    return _annotations(live).get(ANNOTATION_INPUTS) == digest(inputs)


def rendering_of(live: Manifest | None) -> Manifest | None:
    """What a live object says it was rendered as; None if it says nothing that can be read."""
    annotations = _annotations(live)
    if not {ANNOTATION_INPUTS, ANNOTATION_RENDERED} <= annotations.keys():
        return None
    try:
        return unpack(annotations[ANNOTATION_RENDERED])
    except ValueError:
        return None


def _annotations(live: Manifest | None) -> dict[str, str]:
    return dict(((live or {}).get("metadata") or {}).get("annotations") or {})


def _annotated(manifest: Manifest, inputs: str, packed: str) -> Manifest:
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), ANNOTATION_INPUTS: inputs, ANNOTATION_RENDERED: packed}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def _same_object(kept: Manifest, rendered: Manifest) -> bool:
    def key(manifest: Manifest) -> tuple[object, ...]:
        metadata = manifest.get("metadata")
        if not isinstance(metadata, dict):
            return ()
        return (
            manifest.get("apiVersion"),
            manifest.get("kind"),
            metadata.get("namespace"),
            metadata.get("name"),
            metadata.get("ownerReferences"),
        )

    return key(kept) == key(rendered)
