"""Plans are kept: once made, a plan stays until a field of the spec that matters to it changes. Pure.

The revision is pinned the same way: a stored plan has its model's facts, and as long as source and revision of the spec
are those it was made for, nobody resolves them again. So is the node image, which all members of a pipe run: another
one is another `StoredPlan` with the same layers. How a ConfigMap holds a plan is `manifests.plan`'s to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from languagepipes_api.facts import ModelFacts
from languagepipes_api.names import LABEL_PLAN, LABEL_ROLE, WIRE_VERSION
from languagepipes_api.spec import PipeSpec

from languagepipes_operator.children import stored_plan
from languagepipes_operator.children.labels import ANNOTATION_UPGRADE
from languagepipes_operator.decide.image_pulls import cannot_be_pulled
from languagepipes_operator.decide.last_applied import digest
from languagepipes_operator.observe.ownership import end_models, is_ready, label
from languagepipes_operator.observe.snapshot import Manifest, Snapshot, StoredPlan
from languagepipes_operator.planning.checks import check_templates
from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.planning.plan import limits_hold, plan


@dataclass(frozen=True)
class Chosen:
    """The plan in force, or why there is none; neither while facts are awaited. made: whether it is new."""

    kept: StoredPlan | None = None
    refusal: PlanError | None = None
    made: bool = False


def inputs_of(spec: PipeSpec) -> str:
    """Hash of what a plan depends on: first the model (8 digits), then how it is split.

    Part of the contract between operator versions: a field that is added may only count where it is not at its
    default. Not in it: nodes, images, what only shapes pods.
    """
    return f"{model_inputs(spec)}{_layout_inputs(spec)}"


def model_inputs(spec: PipeSpec) -> str:
    """Hash of which model it is: a plan of another has no facts to offer."""
    return digest({"source": spec.model.source, "revision": spec.model.resolved_from})[:8]


def _layout_inputs(spec: PipeSpec) -> str:
    stages = spec.stages
    split: object = {"count": stages.count, "device": stages.device or "CPU"}
    if stages.items is not None:
        split = [[item.name, item.layers, item.memory_bytes, item.device] for item in stages.items]
    ends = spec.end_model
    return digest(
        {
            "dtype": spec.model.dtype,
            "context": spec.model.max_context_length,
            "ends": [ends.local_layers, ends.tail_layers, ends.device],
            "stages": split,
        }
    )[:8]


def stored_plans(config_maps: Iterable[Manifest]) -> list[StoredPlan]:
    """Every plan that is kept, the oldest first: of two for the same inputs, the first made stays."""
    found = sorted(
        (item for item in config_maps if (item["metadata"].get("labels") or {}).get(LABEL_ROLE) == "plan"),
        key=lambda item: (item["metadata"].get("creationTimestamp", ""), item["metadata"]["name"]),
    )
    return [kept for kept in map(stored_plan, found) if kept is not None]


def choose(
    snapshot: Snapshot, *, facts: ModelFacts | None, node_image: str, remembered: StoredPlan | None = None
) -> Chosen:
    """The plan for the spec as it stands: the kept one, or a new one as soon as there are facts.

    Templates are no part of a plan's inputs, but a memory limit below what the stored plan needs asks for another plan.

    facts: what the store of this very model said. node_image: what new plans run. remembered: the plan in force so far,
    should its ConfigMap be gone.
    """
    spec, inputs = snapshot.pipe.spec, inputs_of(snapshot.pipe.spec)

    def serves(each: StoredPlan) -> bool:
        return each.inputs == inputs and limits_hold(each.plan, spec)

    kept = written = stored_plans(snapshot.children.config_maps.values())
    if remembered is not None and all(_content(remembered) != _content(each) for each in written):
        kept = [*written, remembered]
    try:
        check_templates(spec)
    except PlanError as refusal:
        return Chosen(refusal=refusal)
    serving = [*filter(serves, written)] or [*filter(serves, kept)]
    if serving:
        return _with_image(_latest(serving), snapshot, node_image)
    known = pinned_facts(kept, spec) or facts
    if known is None:
        return Chosen()
    current = kept[-1] if kept else None
    try:
        made = plan(spec, known, snapshot.nodes or (), current.plan if current else None)
    except PlanError as refusal:
        return Chosen(refusal=refusal)
    if current is None or made.hash != current.plan.hash:
        return Chosen(StoredPlan(made, known, node_image, inputs, _upgrade_asked(snapshot)), made=True)
    again = StoredPlan(made, known, current.node_image, inputs, current.upgrade)
    return replace(_with_image(again, snapshot, node_image), made=True)


def _latest(serving: Sequence[StoredPlan]) -> StoredPlan:
    """Of plans for the same inputs the first made; of one plan with two images the last, which gave the other up."""
    return next(each for each in reversed(serving) if each.plan.hash == serving[0].plan.hash)


def _with_image(kept: StoredPlan, snapshot: Snapshot, node_image: str) -> Chosen:
    """The stored plan with its own image; or with the operator's, where people ask for it, or where its own cannot be
    pulled and no replica answers. A replica that answers is never taken down for one that does not.
    """
    asked = _upgrade_asked(snapshot)
    unanswered = asked not in ("", kept.upgrade)
    if snapshot.pipe.spec.paused:
        return Chosen(kept)
    if node_image == kept.node_image:
        return Chosen(replace(kept, upgrade=asked) if unanswered else kept)
    if not unanswered and not _stands_still(kept, snapshot):
        return Chosen(kept)
    # Where the wire has another version, so has the plan, and with another hash all Deployments are other ones.
    of_today = replace(kept.plan, wire_version=WIRE_VERSION)
    return Chosen(replace(kept, plan=of_today, node_image=node_image, upgrade=asked or kept.upgrade), made=True)


def _upgrade_asked(snapshot: Snapshot) -> str:
    return str((snapshot.raw["metadata"].get("annotations") or {}).get(ANNOTATION_UPGRADE, ""))


def _stands_still(kept: StoredPlan, snapshot: Snapshot) -> bool:
    """Whether no replica answers and a member's image cannot be pulled."""
    if any(map(is_ready, end_models(snapshot.children))):
        return False
    deployments, pods = (
        [item for item in items.values() if label(item, LABEL_PLAN) == kept.plan.hash]
        for items in (snapshot.children.deployments, snapshot.children.pods)
    )
    return cannot_be_pulled(kept.node_image, deployments, pods, now=snapshot.now)


def is_planned(spec: PipeSpec, config_maps: Iterable[Manifest]) -> bool:
    """Whether one of these keeps a plan that serves the spec as it stands."""
    inputs = inputs_of(spec)
    return any(each.inputs == inputs and limits_hold(each.plan, spec) for each in stored_plans(config_maps))


def pinned_facts(kept: Iterable[StoredPlan], spec: PipeSpec) -> ModelFacts | None:
    """What is known of the spec's model from plans that were made for it."""
    wanted = model_inputs(spec)
    return next((each.facts for each in kept if each.inputs.startswith(wanted)), None)


def _content(kept: StoredPlan) -> tuple[str, str]:
    return kept.plan.hash, kept.node_image
