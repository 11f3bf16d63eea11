"""The ConfigMap that stores a plan, with the facts and the node image it was made for.

Its data never changes; `inputs` and `upgrade` are annotations, since the same plan and image may answer another spec
or another request. `observe.stored_plans` reads it.
"""

from __future__ import annotations

import json
from typing import Any

from languagepipes_operator import names
from languagepipes_operator.children.labels import labels, metadata
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.names import ANNOTATION_INPUTS, ANNOTATION_UPGRADE
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.observe.stored_plans import (
    FACTS_KEY,
    IMAGE_KEY,
    PLAN_KEY,
    StoredPlan,
    content_hash,
    stored_plan,
)


def config_name(pipe: str, stored: StoredPlan) -> str:
    """The name of this plan's ConfigMap."""
    return names.plan_config(pipe, content_hash(stored))


def plan_config_map(snapshot: Snapshot, stored: StoredPlan) -> Manifest:
    """One that is there already keeps its text, which may give other reasons: it cannot be changed."""
    pipe = snapshot.pipe.name
    name = config_name(pipe, stored)
    data = {
        PLAN_KEY: _text(stored.plan.to_json()),
        FACTS_KEY: _text(stored.facts.to_json()),
        IMAGE_KEY: stored.node_image,
    }
    live = snapshot.children.config_maps.get(name)
    if live is not None:
        known = stored_plan(live)
        if known is not None and content_hash(known) == content_hash(stored):
            data = {key: live["data"][key] for key in data}
    meta = metadata(snapshot, name, labels(pipe, "plan", plan=stored.plan.hash))
    annotations = {ANNOTATION_INPUTS: stored.inputs}
    if stored.upgrade:
        annotations[ANNOTATION_UPGRADE] = stored.upgrade
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**meta, "annotations": annotations},
        "immutable": True,
        "data": data,
    }


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
