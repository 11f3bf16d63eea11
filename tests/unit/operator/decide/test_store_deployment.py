"""Which image the weights store runs, and which revision it serves."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import StoreReport
from support.example_pipes import (
    container_of,
    living,
    of_kind,
    pipe_snapshot,
    pod_of_deployment,
    rendered,
    rolled_out,
    settings,
    store_children,
    stored_plan_of,
    waiting,
    with_pods,
)


def store_of(manifests: list[Manifest]) -> Manifest:
    (store,) = of_kind(manifests, "Deployment", "store")
    return store


def test_before_there_is_a_plan_an_upgraded_operator_leaves_the_store_alone() -> None:
    snapshot = pipe_snapshot()
    before = store_children(snapshot, settings())

    after = store_children(living(snapshot, before), settings(node_image="languagepipes-node:2"))

    assert after == before


def test_a_store_that_is_to_serve_another_model_keeps_its_image() -> None:
    snapshot = pipe_snapshot()
    live = living(snapshot, rendered(snapshot))
    other = pipe_snapshot(source="hf://Qwen/Qwen3-4B", children=live.children)

    after = store_children(other, settings(node_image="languagepipes-node:2"))

    assert container_of(store_of(after))["image"] == "languagepipes-node:1"


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"])
def test_a_store_whose_image_was_never_pulled_takes_the_corrected_one_at_once(reason: str) -> None:
    snapshot = pipe_snapshot()
    before = store_children(snapshot, settings(node_image="languagepipes-nod:1"))
    stuck = with_pods(living(snapshot, before), [pod_of_deployment(store_of(before), state=waiting(reason))])

    after = store_children(stuck, settings())
    stays = store_children(stuck, settings(node_image="languagepipes-nod:1"))

    assert container_of(store_of(after))["image"] == "languagepipes-node:1"
    assert store_children(living(snapshot, after), settings()) == after
    assert stays == before


@pytest.mark.parametrize(
    "state",
    [
        None,
        {"waiting": {"reason": "ContainerCreating"}},
        {"waiting": {"reason": "CrashLoopBackOff"}},
        {"terminated": {"exitCode": 1}},
    ],
)
def test_a_store_whose_image_was_pulled_keeps_it(state: dict[str, Any] | None) -> None:
    snapshot = pipe_snapshot()
    before = store_children(snapshot, settings())
    found = with_pods(living(snapshot, before), [pod_of_deployment(store_of(before), state=state)])

    assert store_children(found, settings(node_image="languagepipes-node:2")) == before


def test_a_store_that_ran_waits_for_its_image_for_two_minutes_before_it_takes_another() -> None:
    snapshot, newer = pipe_snapshot(), settings(node_image="languagepipes-node:2")
    before = store_children(snapshot, settings())
    pod = pod_of_deployment(store_of(before), state=waiting("ImagePullBackOff"))
    pod["status"]["containerStatuses"][0] |= {"restartCount": 1, "lastState": {"terminated": {"exitCode": 255}}}
    stuck = with_pods(living(snapshot, before), [pod])

    early = store_children(replace(stuck, now=stuck.now + timedelta(seconds=119)), newer)
    late = store_children(replace(stuck, now=stuck.now + timedelta(seconds=120)), newer)

    assert early == before
    assert container_of(store_of(late))["image"] == "languagepipes-node:2"


def test_only_the_store_of_a_planned_pipe_takes_the_operators_image_when_its_own_is_gone() -> None:
    snapshot = pipe_snapshot()
    stored = stored_plan_of(snapshot)
    before = rendered(snapshot, stored)
    stuck = with_pods(living(snapshot, before), [pod_of_deployment(store_of(before), state=waiting("ErrImagePull"))])

    after = rendered(stuck, stored, node_image="languagepipes-node:2")

    assert [one for one in after if one not in before] == [store_of(after)]
    assert container_of(store_of(after))["image"] == "languagepipes-node:2"
    assert rendered(living(snapshot, after), stored, node_image="languagepipes-node:2") == after


def test_a_store_edited_by_hand_before_there_is_a_plan_is_wanted_as_it_was() -> None:
    snapshot = pipe_snapshot()
    before = store_children(snapshot, settings())
    edited = json.loads(json.dumps(before))
    container_of(of_kind(edited, "Deployment")[0])["image"] = "nginx"

    assert store_children(living(snapshot, edited), settings(node_image="languagepipes-node:2")) == before


def test_a_store_that_must_change_anyway_takes_the_new_image() -> None:
    before = store_children(pipe_snapshot(), settings())
    snapshot = living(pipe_snapshot(source="hf://Qwen/Qwen3-4B"), before)
    newer = settings(node_image="languagepipes-node:2")

    after = store_children(snapshot, newer)
    planned = store_children(living(snapshot, after), newer, stored_plan_of(snapshot, image="languagepipes-node:1"))

    assert container_of(of_kind(after, "Deployment")[0])["image"] == "languagepipes-node:2"
    assert planned == after


def served_revision(manifests: list[Manifest]) -> str:
    (store,) = of_kind(manifests, "Deployment", "store")
    return {item["name"]: item["value"] for item in container_of(store)["env"]}["LANGUAGEPIPES_REVISION"]


def test_a_store_that_lost_its_volume_after_its_branch_moved_serves_the_plans_commit() -> None:
    snapshot = pipe_snapshot()
    stored = stored_plan_of(snapshot)
    before = rendered(snapshot, stored)
    same = StoreReport(answered=True, facts=stored.facts)
    moved = StoreReport(answered=True, facts=replace(stored.facts, revision="another"))

    at_first = rendered(replace(living(snapshot, before), store=same), stored)
    then = rendered(replace(living(snapshot, before), store=moved), stored)
    later = rendered(replace(living(snapshot, then), store=None), stored)

    assert (served_revision(at_first), served_revision(then), served_revision(later)) == ("main", "c0ffee", "c0ffee")
    assert at_first == before
    assert later == then


def test_the_store_that_a_plan_finds_stays_as_it_is() -> None:
    snapshot = pipe_snapshot()
    before = store_children(snapshot, settings())

    assert store_children(living(snapshot, before), settings(), stored_plan_of(snapshot)) == before


def test_a_plan_for_the_new_image_takes_the_store_along() -> None:
    snapshot = pipe_snapshot()
    before = rendered(snapshot)
    newer = stored_plan_of(snapshot, image="languagepipes-node:2")

    after = rolled_out(living(snapshot, before), newer, node_image="languagepipes-node:2")

    assert {container_of(deployment)["image"] for deployment in of_kind(after, "Deployment")} == {
        "languagepipes-node:2"
    }
