"""The ConfigMap that keeps a plan, with the facts and the node image it was made for.

Its data never changes; `inputs` and `upgrade` are annotations, since the same plan and image may answer another spec
or another request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import lru_cache
from typing import Any

from languagepipes_api.facts import ModelFacts
from languagepipes_api.plan import Plan

from languagepipes_operator.children import names
from languagepipes_operator.children.labels import ANNOTATION_INPUTS, ANNOTATION_UPGRADE, labels, metadata
from languagepipes_operator.decide.last_applied import digest
from languagepipes_operator.observe.snapshot import Manifest, Snapshot, StoredPlan

PLAN_KEY = "plan.json"
FACTS_KEY = "facts.json"
IMAGE_KEY = "node-image"

# What members need not agree on and do not read: words for people, and where the planner would have them.
_ASIDE = ("reason", "reasons", "node", "hash")


@lru_cache(maxsize=64)  # every member of every replica asks
def content_hash(kept: StoredPlan) -> str:
    """Identifies what members read and run: the plan without its words and preferred nodes, and the image.

    Fields at their default are outside it, so that a field that a later version adds changes nothing.
    """
    return digest({"plan": _content(kept.plan), "image": kept.node_image})


def config_name(pipe: str, kept: StoredPlan) -> str:
    """The name of this plan's ConfigMap."""
    return names.plan_config(pipe, content_hash(kept))


def plan_config_map(snapshot: Snapshot, kept: StoredPlan) -> Manifest:
    """One that is there already keeps its text, which may give other reasons: it cannot be changed."""
    pipe = snapshot.pipe.name
    name = config_name(pipe, kept)
    data = {
        PLAN_KEY: _text(kept.plan.to_json()),
        FACTS_KEY: _text(kept.facts.to_json()),
        IMAGE_KEY: kept.node_image,
    }
    live = snapshot.children.config_maps.get(name)
    if live is not None:
        known = stored_plan(live)
        if known is not None and content_hash(known) == content_hash(kept):
            data = {key: live["data"][key] for key in data}
    meta = metadata(snapshot, name, labels(pipe, "plan", plan=kept.plan.hash))
    annotations = {ANNOTATION_INPUTS: kept.inputs}
    if kept.upgrade:
        annotations[ANNOTATION_UPGRADE] = kept.upgrade
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**meta, "annotations": annotations},
        "immutable": True,
        "data": data,
    }


def stored_plan(config_map: Mapping[str, Any]) -> StoredPlan | None:
    """What a plan's ConfigMap keeps; None if it holds no plan that this version reads."""
    try:
        data, annotations = config_map["data"], config_map["metadata"]["annotations"]
        return StoredPlan(
            plan=Plan.from_json(json.loads(data[PLAN_KEY])),
            facts=ModelFacts.from_json(json.loads(data[FACTS_KEY])),
            node_image=str(data[IMAGE_KEY]),
            inputs=str(annotations[ANNOTATION_INPUTS]),
            upgrade=str(annotations.get(ANNOTATION_UPGRADE, "")),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _content(value: Any) -> Any:
    """A dataclass as JSON, without what is aside and what is at its default."""
    if isinstance(value, tuple):
        return [_content(item) for item in value]
    if not hasattr(value, "__dataclass_fields__"):
        return value
    return {
        item.name: _content(getattr(value, item.name))
        for item in fields(value)
        if item.name not in _ASIDE and (item.default is MISSING or getattr(value, item.name) != item.default)
    }


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
