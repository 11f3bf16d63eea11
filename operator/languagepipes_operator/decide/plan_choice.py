"""Which plan is in force: once made, a plan stays until a field of the spec that matters to it changes. Pure.

The revision is pinned the same way: a stored plan has its model's facts, and as long as source and revision of the spec
are those it was made for, they are not resolved again. So is the node image, which all members of a pipe run: another
one is another `StoredPlan` with the same layers. An edit of the spec asks for other layers, not for another image: its
plan has the image that runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from languagepipes_api.facts import ModelFacts
from languagepipes_api.names import LABEL_PLAN, WIRE_VERSION

from languagepipes_operator.decide.image_pulls import cannot_be_pulled
from languagepipes_operator.decide.running_plan import running_plan
from languagepipes_operator.names import ANNOTATION_UPGRADE
from languagepipes_operator.observe.endpoint import takes_requests
from languagepipes_operator.observe.ownership import end_models, label
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.observe.stored_plans import StoredPlan, pinned_facts, stored_plans
from languagepipes_operator.planning.checks import check_templates
from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.planning.inputs import plan_inputs
from languagepipes_operator.planning.plan import plan


@dataclass(frozen=True)
class PlanChoice:
    """The plan in force, or why there is none; neither while facts are awaited. is_new: whether it is still to be
    stored.
    """

    stored: StoredPlan | None = None
    refusal: PlanError | None = None
    is_new: bool = False


def choose_plan(
    snapshot: Snapshot, *, facts: ModelFacts | None, node_image: str, remembered: StoredPlan | None = None
) -> PlanChoice:
    """The plan for the spec as it stands: the stored one, or a new one as soon as there are facts.

    facts: what the store of this very model reported. node_image: the operator's, which a pipe's first plan runs.
    remembered: the plan in force so far, should its ConfigMap be gone.
    """
    spec = snapshot.pipe.spec
    written = stored_plans(snapshot.children.config_maps.values())
    plans = known_plans(snapshot, remembered)
    try:
        check_templates(spec)
    except PlanError as refusal:
        return PlanChoice(refusal=refusal)
    serving = [each for each in written if each.serves(spec)] or [each for each in plans if each.serves(spec)]
    if serving:
        return _with_image(_latest(serving), snapshot, node_image)
    known = pinned_facts(plans, spec) or facts
    if known is None:
        return PlanChoice()
    current = plans[-1] if plans else None
    try:
        made = plan(spec, known, snapshot.nodes or (), current.plan if current else None)
    except PlanError as refusal:
        return PlanChoice(refusal=refusal)
    inputs = plan_inputs(spec)
    runs = current if current is None or made.hash == current.plan.hash else running_plan(snapshot.children, plans)
    keeps = runs or current
    if keeps is None or made.wire_version != keeps.plan.wire_version or _cannot_start(keeps, snapshot):
        return PlanChoice(StoredPlan(made, known, node_image, inputs, _upgrade_asked(snapshot)), is_new=True)
    again = StoredPlan(made, known, keeps.node_image, inputs, keeps.upgrade)
    return replace(_with_image(again, snapshot, node_image), is_new=True)


def known_plans(snapshot: Snapshot, remembered: StoredPlan | None) -> list[StoredPlan]:
    """Every stored plan, the oldest first, and the remembered one if it is not among them."""
    written = stored_plans(snapshot.children.config_maps.values())
    if remembered is None or any(_content(remembered) == _content(each) for each in written):
        return written
    return [*written, remembered]


def _latest(serving: Sequence[StoredPlan]) -> StoredPlan:
    """Of plans for the same inputs the first made; of one plan with two images the last, which replaced the other."""
    return next(each for each in reversed(serving) if each.plan.hash == serving[0].plan.hash)


def _with_image(stored: StoredPlan, snapshot: Snapshot, node_image: str) -> PlanChoice:
    """The stored plan with its own image; or with the operator's, where people ask for it, or where its own cannot be
    pulled and no replica answers. A replica that answers is never taken down for one that does not.
    """
    asked = _upgrade_asked(snapshot)
    unanswered = asked not in ("", stored.upgrade)
    if snapshot.pipe.spec.paused:
        return PlanChoice(stored)
    if node_image == stored.node_image:
        return PlanChoice(replace(stored, upgrade=asked) if unanswered else stored)
    if not unanswered and not _cannot_start(stored, snapshot):
        return PlanChoice(stored)
    # Where the wire has another version, so has the plan, and with another hash all Deployments are other ones.
    of_today = replace(stored.plan, wire_version=WIRE_VERSION)
    upgraded = replace(stored, plan=of_today, node_image=node_image, upgrade=asked or stored.upgrade)
    return PlanChoice(upgraded, is_new=True)


def _upgrade_asked(snapshot: Snapshot) -> str:
    return str((snapshot.raw["metadata"].get("annotations") or {}).get(ANNOTATION_UPGRADE, ""))


def _cannot_start(stored: StoredPlan, snapshot: Snapshot) -> bool:
    """Whether no replica takes requests and a member's image cannot be pulled."""
    if any(takes_requests(pod, snapshot) for pod in end_models(snapshot.children)):
        return False
    deployments, pods = (
        [item for item in items.values() if label(item, LABEL_PLAN) == stored.plan.hash]
        for items in (snapshot.children.deployments, snapshot.children.pods)
    )
    return cannot_be_pulled(stored.node_image, deployments, pods, now=snapshot.now)


def _content(stored: StoredPlan) -> tuple[str, str]:
    return stored.plan.hash, stored.node_image
