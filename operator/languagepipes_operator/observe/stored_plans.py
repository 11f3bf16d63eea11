"""The plans that a pipe's ConfigMaps store: what such a ConfigMap holds, and which plan still serves the spec. Pure.

A plan stays until a field of the spec that matters to it changes. Its ConfigMap is written by `children.plan_config`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from typing import Any

from languagepipes_api.facts import ModelFacts
from languagepipes_api.names import LABEL_ROLE
from languagepipes_api.plan import Plan
from languagepipes_api.spec import PipeSpec

from languagepipes_operator.digest import digest
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.names import ANNOTATION_INPUTS, ANNOTATION_UPGRADE
from languagepipes_operator.planning.inputs import model_inputs, plan_inputs
from languagepipes_operator.planning.plan import limits_hold

PLAN_KEY = "plan.json"
FACTS_KEY = "facts.json"
IMAGE_KEY = "node-image"

# Fields that members do not read and need not agree on: sentences for people, and the nodes that the planner prefers.
_NOT_IN_CONTENT = ("reason", "reasons", "node", "hash")


@dataclass(frozen=True)
class StoredPlan:
    """A plan with the facts it was made from and the image that its members run.

    inputs: hash of the spec's fields that matter to a plan (`planning.inputs`). upgrade: the last request for the
    operator's node image (`names.ANNOTATION_UPGRADE`) that was answered.
    """

    plan: Plan
    facts: ModelFacts
    node_image: str
    inputs: str
    upgrade: str = ""

    def serves(self, spec: PipeSpec) -> bool:
        """Whether it is a plan for the spec as it stands. Templates are no part of a plan's inputs, but a memory limit
        below what the plan needs asks for another plan.
        """
        return self.inputs == plan_inputs(spec) and limits_hold(self.plan, spec)


def stored_plan(config_map: Mapping[str, Any]) -> StoredPlan | None:
    """What a plan's ConfigMap holds; None if it holds no plan that this version reads."""
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


def stored_plans(config_maps: Iterable[Manifest]) -> list[StoredPlan]:
    """Every stored plan, the oldest first: of two for the same inputs, the first made stays."""
    found = sorted(
        (item for item in config_maps if (item["metadata"].get("labels") or {}).get(LABEL_ROLE) == "plan"),
        key=lambda item: (item["metadata"].get("creationTimestamp", ""), item["metadata"]["name"]),
    )
    return [stored for stored in map(stored_plan, found) if stored is not None]


def is_planned(spec: PipeSpec, config_maps: Iterable[Manifest]) -> bool:
    """Whether a stored plan serves the spec as it stands."""
    return any(stored.serves(spec) for stored in stored_plans(config_maps))


def pinned_facts(plans: Iterable[StoredPlan], spec: PipeSpec) -> ModelFacts | None:
    """What is known of the spec's model from plans that were made for it. Facts that an older version stored say
    nothing of quantisation: where that is asked for, the store is asked.
    """
    wanted = model_inputs(spec)
    return next(
        (
            stored.facts
            for stored in plans
            if stored.inputs.startswith(wanted) and (spec.model.quantization == "none" or stored.facts.quantised)
        ),
        None,
    )


@lru_cache(maxsize=64)  # asked for every member of every replica
def content_hash(stored: StoredPlan) -> str:
    """Identifies what members read and run: the plan without its sentences and preferred nodes, and the image.

    Fields at their default are outside it, so that a field that a later version adds changes nothing.
    """
    return digest({"plan": _content(stored.plan), "image": stored.node_image})


def _content(value: Any) -> Any:
    """A dataclass as JSON, without what does not count and what is at its default."""
    if isinstance(value, tuple):
        return [_content(item) for item in value]
    if not hasattr(value, "__dataclass_fields__"):
        return value
    return {
        item.name: _content(getattr(value, item.name))
        for item in fields(value)
        if item.name not in _NOT_IN_CONTENT and (item.default is MISSING or getattr(value, item.name) != item.default)
    }
