"""A stored plan stays in force until the spec asks for another one, and so does its image until people ask for another
one or it cannot be pulled. What templates ask for is checked against the stored plan, too.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from languagepipes_operator.children.plan_config import plan_config_map
from languagepipes_operator.decide.plan_choice import PlanChoice, choose_plan
from languagepipes_operator.kube.informer import trimmed_pod
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Children, Snapshot
from languagepipes_operator.observe.stored_plans import StoredPlan, is_planned
from languagepipes_operator.planning import node_of
from languagepipes_operator.planning.kubernetes_nodes import pod_request
from support.example_pipes import (
    FACTS,
    container_of,
    living,
    pipe_snapshot,
    pod_of_deployment,
    rendered,
    rolled_out,
    waiting,
    with_pods,
)

GIB = 2**30


def stored_with(template: dict[str, Any]) -> Snapshot:
    """A pipe whose plan was made without a template, and whose stages have this one now."""
    before = pipe_snapshot()
    made = choose_plan(before, facts=FACTS, node_image="image:1").stored
    assert made is not None
    config_map = plan_config_map(before, made)
    after = pipe_snapshot(stages={"count": 3, "template": template})
    return replace(after, children=Children(config_maps={config_map["metadata"]["name"]: config_map}))


def limited_to(memory: str) -> Snapshot:
    return stored_with({"resources": {"limits": {"memory": memory}}})


def chosen(snapshot: Snapshot) -> PlanChoice:
    return choose_plan(snapshot, facts=None, node_image="image:2")


def test_a_template_that_leaves_enough_keeps_the_plan() -> None:
    snapshot = limited_to("64Gi")
    found = chosen(snapshot)
    assert found.stored is not None
    assert not found.is_new
    assert is_planned(snapshot.pipe.spec, snapshot.children.config_maps.values())


def test_a_limit_below_the_stored_plan_s_need_asks_for_another_plan_within_it() -> None:
    snapshot = limited_to("1Gi")
    found = chosen(snapshot)
    assert found.stored is not None
    assert found.is_new
    assert all(stage.weight_bytes + stage.kv_bytes + stage.overhead_bytes <= GIB for stage in found.stored.plan.stages)
    assert not is_planned(snapshot.pipe.spec, snapshot.children.config_maps.values())

    config_map = plan_config_map(snapshot, found.stored)
    children = {**snapshot.children.config_maps, config_map["metadata"]["name"]: config_map}
    again = replace(snapshot, children=Children(config_maps=children))
    assert chosen(again).stored == found.stored
    assert not chosen(again).is_new


def test_a_limit_that_holds_no_sequence_is_refused_also_with_a_stored_plan() -> None:
    refusal = chosen(limited_to("100Mi")).refusal
    assert refusal is not None
    assert refusal.reason == "LimitTooSmall"


def test_a_template_that_contradicts_itself_is_refused_also_with_a_stored_plan() -> None:
    refusal = chosen(stored_with({"resources": {"limits": {"cpu": 1}, "requests": {"cpu": 2}}})).refusal
    assert refusal is not None
    assert refusal.reason == "InvalidTemplate"


def test_what_a_cached_pod_asks_of_its_node_is_all_there() -> None:
    pod: dict[str, Any] = {
        "metadata": {"name": "p", "labels": {}},
        "spec": {
            "nodeName": "n",
            "overhead": {"memory": "1Gi"},
            "containers": [{"name": "a", "resources": {"requests": {"memory": "2Gi"}}, "env": []}],
            "initContainers": [
                {"name": "mesh", "restartPolicy": "Always", "resources": {"requests": {"memory": "3Gi"}}}
            ],
        },
        "status": {"phase": "Running"},
    }
    cached = trimmed_pod(deepcopy(pod))
    assert pod_request(cached, "memory") == 6 * GIB
    node = {"metadata": {"name": "n"}, "status": {"allocatable": {"memory": "16Gi"}}}
    assert node_of(node, [cached]).free_bytes == 10 * GIB


# --- The image --------------------------------------------------------------------------------------------------------


def planned(**spec: Any) -> tuple[Snapshot, StoredPlan]:
    """A pipe whose members run image:1, and the plan that it keeps."""
    before = pipe_snapshot(**spec)
    stored = choose_plan(before, facts=FACTS, node_image="image:1").stored
    assert stored is not None
    return living(before, rendered(before, stored)), stored


def pods_of(snapshot: Snapshot, *roles: str, **state: Any) -> list[Manifest]:
    return [
        pod_of_deployment(deployment, **state)
        for deployment in snapshot.children.deployments.values()
        if deployment["metadata"]["labels"]["languagepipes.io/role"] in roles
    ]


def annotated(snapshot: Snapshot, value: str | None) -> Snapshot:
    annotations = {} if value is None else {"languagepipes.io/upgrade": value}
    return replace(snapshot, raw={**snapshot.raw, "metadata": {**snapshot.raw["metadata"], "annotations": annotations}})


def carried_out(snapshot: Snapshot, stored: StoredPlan) -> Snapshot:
    """The same pipe, with this plan's children and no others; its pods are to come."""
    return living(snapshot, rolled_out(with_pods(snapshot, []), stored))


def plans(snapshot: Snapshot) -> set[str]:
    return {
        each["metadata"]["labels"].get("languagepipes.io/plan", "") for each in snapshot.children.deployments.values()
    }


def images(snapshot: Snapshot) -> set[str]:
    return {container_of(each)["image"] for each in snapshot.children.deployments.values()}


def test_another_recovery_is_served_by_the_same_plan() -> None:
    snapshot, stored = planned()
    changed = pipe_snapshot(children=snapshot.children, recovery={"maxWaitSeconds": 10, "maxReplays": 1})

    assert chosen(changed) == PlanChoice(stored)


def test_a_new_operator_leaves_the_image_of_a_pipe_alone() -> None:
    snapshot, stored = planned()
    healthy = with_pods(snapshot, pods_of(snapshot, "stage", "end-model", "store"))

    assert chosen(healthy) == PlanChoice(stored)


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"])
def test_a_plan_whose_image_nobody_has_run_takes_the_operators_at_once_for_all_members(reason: str) -> None:
    snapshot, stored = planned()
    stuck = with_pods(snapshot, pods_of(snapshot, "stage", "end-model", state=waiting(reason)))

    found = chosen(stuck)

    assert found == PlanChoice(replace(stored, node_image="image:2"), is_new=True)
    assert found.stored is not None
    after = carried_out(snapshot, found.stored)
    assert images(after) == {"image:2"}
    assert plans(after) == plans(snapshot)
    assert chosen(after) == PlanChoice(found.stored)


def test_an_image_that_members_run_is_given_up_when_it_could_not_be_pulled_for_two_minutes() -> None:
    snapshot, stored = planned()
    run = pods_of(snapshot, "stage", ready=False)
    lost = pods_of(snapshot, "end-model", state=waiting("ImagePullBackOff"))
    stuck = with_pods(snapshot, [*run, *lost])

    early = chosen(replace(stuck, now=stuck.now + timedelta(seconds=119)))
    late = chosen(replace(stuck, now=stuck.now + timedelta(seconds=120)))

    assert early == PlanChoice(stored)
    assert late == PlanChoice(replace(stored, node_image="image:2"), is_new=True)


def test_an_image_that_a_deployments_lost_pod_has_run_is_waited_for_too() -> None:
    snapshot, stored = planned()
    condition = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
    for deployment in snapshot.children.deployments.values():
        deployment["status"] = {"observedGeneration": 1, "conditions": [condition]}
    stuck = with_pods(snapshot, pods_of(snapshot, "stage", "end-model", state=waiting("ErrImagePull")))

    assert chosen(stuck) == PlanChoice(stored)

    for deployment in snapshot.children.deployments.values():
        deployment["metadata"]["generation"] = 2  # the condition is of an earlier form
    assert chosen(stuck) != PlanChoice(stored)


def test_a_container_that_was_injected_says_nothing_of_the_image() -> None:
    snapshot, stored = planned()
    pods = pods_of(snapshot, "stage", ready=False)
    for pod in pods:
        pod["spec"]["containers"].insert(0, {"name": "mesh", "image": "image:1"})
        pod["status"]["containerStatuses"].insert(0, {"name": "mesh", "state": waiting("ImagePullBackOff")})

    assert chosen(replace(with_pods(snapshot, pods), now=snapshot.now + timedelta(hours=1))) == PlanChoice(stored)


def test_a_replica_that_answers_keeps_its_image_whatever_another_one_waits_for() -> None:
    snapshot, stored = planned(replicas=2)
    pods = [
        pod_of_deployment(each, state=waiting("ImagePullBackOff") if replica == "1" else None)
        for each in snapshot.children.deployments.values()
        if (replica := each["metadata"]["labels"].get("languagepipes.io/chain"))
    ]
    half = replace(with_pods(snapshot, pods), now=snapshot.now + timedelta(hours=1))

    assert chosen(half) == PlanChoice(stored)


def test_an_image_that_cannot_be_pulled_stays_while_the_operator_has_no_other() -> None:
    snapshot, stored = planned()
    stuck = with_pods(snapshot, pods_of(snapshot, "stage", state=waiting("ImagePullBackOff")))

    assert choose_plan(stuck, facts=None, node_image="image:1") == PlanChoice(stored)


def test_pods_that_wait_for_another_image_say_nothing_of_the_plans() -> None:
    snapshot, stored = planned()
    pods = pods_of(snapshot, "stage", state=waiting("ImagePullBackOff"))
    for pod in pods:
        pod["spec"]["containers"][0]["image"] = "image:0"

    assert chosen(with_pods(snapshot, pods)) == PlanChoice(stored)


def test_a_healthy_pipe_takes_the_operators_image_once_for_each_value_of_the_annotation() -> None:
    snapshot, stored = planned()
    asked = annotated(with_pods(snapshot, pods_of(snapshot, "stage", "end-model")), "2026-11-24")

    found = chosen(asked)
    assert found == PlanChoice(replace(stored, node_image="image:2", upgrade="2026-11-24"), is_new=True)
    assert found.stored is not None
    after = carried_out(asked, found.stored)
    assert images(after) == {"image:2"}

    newer = choose_plan(after, facts=None, node_image="image:3")
    removed = choose_plan(annotated(after, None), facts=None, node_image="image:3")
    again = choose_plan(annotated(after, "again"), facts=None, node_image="image:3")
    assert newer == removed == PlanChoice(found.stored)
    assert again == PlanChoice(replace(found.stored, node_image="image:3", upgrade="again"), is_new=True)


def test_a_request_for_the_image_that_is_run_already_is_answered_and_does_not_wait_for_another() -> None:
    snapshot, stored = planned()
    asked = annotated(snapshot, "1")

    found = choose_plan(asked, facts=None, node_image="image:1")
    assert found == PlanChoice(replace(stored, upgrade="1"))
    assert found.stored is not None
    after = carried_out(asked, found.stored)

    assert after.children.deployments == snapshot.children.deployments
    assert after.children.config_maps.keys() == snapshot.children.config_maps.keys()
    assert chosen(after) == PlanChoice(found.stored)


def test_a_new_plan_has_answered_the_request_that_is_there() -> None:
    asked = annotated(pipe_snapshot(), "1")

    found = choose_plan(asked, facts=FACTS, node_image="image:1").stored
    assert found is not None

    assert chosen(carried_out(asked, found)) == PlanChoice(found)


# Each asks for another plan: another split, another dtype, another model.
EDITS: list[dict[str, Any]] = [
    {"stages": {"count": 2}},
    {"model": {"dtype": "float32"}},
    {"source": "hf://Qwen/Qwen3-4B"},
]


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_the_spec_keeps_the_image_that_runs_and_so_does_undoing_it(edit: dict[str, Any]) -> None:
    snapshot, stored = planned()
    works = with_pods(snapshot, pods_of(snapshot, "stage", "end-model", "store"))

    edited = choose_plan(pipe_snapshot(children=works.children, **edit), facts=FACTS, node_image="image:2")
    assert edited.stored is not None
    after = carried_out(pipe_snapshot(**edit), edited.stored)
    undone = choose_plan(pipe_snapshot(children=after.children), facts=FACTS, node_image="image:3")

    assert (edited.is_new, edited.stored.node_image) == (True, "image:1")
    assert undone == PlanChoice(stored, is_new=True)
    assert images(after) == {"image:1"}


def test_an_edit_beside_a_request_for_the_operators_image_takes_it() -> None:
    snapshot, _ = planned()
    edited = annotated(pipe_snapshot(children=snapshot.children, stages={"count": 2}), "1")

    found = choose_plan(edited, facts=None, node_image="image:2").stored

    assert found is not None
    assert (found.node_image, found.upgrade) == ("image:2", "1")


def test_an_edit_of_a_pipe_whose_image_cannot_be_pulled_takes_the_operators() -> None:
    snapshot, _ = planned()
    stuck = with_pods(snapshot, pods_of(snapshot, "stage", "end-model", state=waiting("ErrImagePull")))

    found = choose_plan(
        pipe_snapshot(children=stuck.children, stages={"count": 2}), facts=None, node_image="image:2"
    ).stored

    assert found is not None
    assert found.node_image == "image:2"


def test_an_edit_takes_the_operators_image_where_the_image_that_runs_speaks_another_wire() -> None:
    snapshot, stored = planned()
    older = replace(stored, plan=replace(stored.plan, wire_version=0))
    live = living(snapshot, rendered(snapshot, older))

    found = choose_plan(
        pipe_snapshot(children=live.children, stages={"count": 2}), facts=None, node_image="image:2"
    ).stored

    assert found is not None
    assert found.node_image == "image:2"


def test_of_several_plans_the_one_that_answers_gives_an_edit_its_image() -> None:
    """A plan that never came up, of an image that was asked for by name, is no reason to move what works."""
    snapshot, stored = planned()
    failed_edit = pipe_snapshot(children=snapshot.children, stages={"count": 2})
    failed = choose_plan(annotated(failed_edit, "1"), facts=None, node_image="image:2").stored
    assert failed is not None
    both = [*rendered(snapshot, stored), *rendered(failed_edit, failed)]
    live = living(snapshot, both)
    works = with_pods(live, [pod_of_deployment(each) for each in rendered(snapshot, stored) if is_end_model(each)])

    found = choose_plan(
        pipe_snapshot(children=works.children, stages={"count": 4}), facts=None, node_image="image:3"
    ).stored

    assert found is not None
    assert found.node_image == "image:1"


def is_end_model(manifest: Manifest) -> bool:
    role = manifest["metadata"]["labels"]["languagepipes.io/role"]
    return (manifest["kind"], role) == ("Deployment", "end-model")


def test_a_pipe_that_is_paused_keeps_its_image() -> None:
    snapshot, stored = planned(paused=True)
    stuck = annotated(with_pods(snapshot, pods_of(snapshot, "stage", state=waiting("ImagePullBackOff"))), "1")

    assert chosen(stuck) == PlanChoice(stored)


def test_of_one_plan_with_two_images_the_later_is_in_force_also_beside_what_is_remembered() -> None:
    snapshot, stored = planned()
    newer = replace(stored, node_image="image:2")
    maps = [plan_config_map(snapshot, each) for each in (newer, stored)]
    maps[0]["metadata"]["creationTimestamp"] = "2026-11-24T00:01:00Z"
    maps[1]["metadata"]["creationTimestamp"] = "2026-11-24T00:00:00Z"

    def stored_in(*config_maps: Manifest) -> Snapshot:
        return replace(
            snapshot, children=Children(config_maps={each["metadata"]["name"]: each for each in config_maps})
        )

    assert chosen(stored_in(*maps)) == PlanChoice(newer)
    assert choose_plan(stored_in(maps[0]), facts=None, node_image="image:2", remembered=stored) == PlanChoice(newer)
    assert choose_plan(stored_in(), facts=None, node_image="image:2", remembered=newer) == PlanChoice(newer)


def test_another_image_that_speaks_another_wire_gets_a_plan_of_another_hash_and_the_same_layers() -> None:
    snapshot, stored = planned()
    older = replace(stored, plan=replace(stored.plan, wire_version=0))
    asked = annotated(living(snapshot, rendered(snapshot, older)), "1")

    untouched = chosen(annotated(asked, None)).stored
    found = chosen(asked).stored

    assert untouched == older
    assert found == replace(stored, node_image="image:2", upgrade="1")
    assert found is not None
    assert found.plan.hash != older.plan.hash
