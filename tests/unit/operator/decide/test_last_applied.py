"""The same snapshot gives the same bytes; what does not shape a pod rolls none."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from languagepipes_operator.apply.surplus import surplus_children
from languagepipes_operator.certificates.authority import new_ca
from languagepipes_operator.decide.last_applied import pack, unpack
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import StoreReport
from languagepipes_operator.observe.stored_plans import stored_plan
from languagepipes_operator.settings import OperatorSettings
from support.example_pipes import (
    container_of,
    living,
    of_kind,
    pipe_snapshot,
    pod_of,
    pod_of_deployment,
    rendered,
    settings,
    store_children,
    stored_plan_of,
    waiting,
    with_pods,
)

INPUTS = "languagepipes.io/inputs"
RENDERED = "languagepipes.io/rendered"


def inputs_of(manifests: list[Manifest]) -> dict[str, str]:
    return {
        manifest["metadata"]["name"]: manifest["metadata"]["annotations"][INPUTS]
        for manifest in of_kind(manifests, "Deployment")
    }


def test_the_same_snapshot_gives_the_same_bytes() -> None:
    first, second = (json.dumps(rendered(pipe_snapshot(cache={"size": "4Gi"}))) for _ in range(2))

    assert first == second


def test_a_live_deployment_keeps_its_own_rendering_while_its_inputs_are_the_same() -> None:
    snapshot = pipe_snapshot()
    before = rendered(snapshot)
    for deployment in of_kind(before, "Deployment"):
        # As an older operator might have rendered it.
        old = {key: value for key, value in deployment.items() if key != "metadata"}
        old["metadata"] = {k: v for k, v in deployment["metadata"].items() if k != "annotations"}
        old["spec"] = {**old["spec"], "revisionHistoryLimit": 7}
        deployment["spec"] = old["spec"]
        deployment["metadata"]["annotations"][RENDERED] = pack(old)

    after = rendered(living(snapshot, before), image_pull_policy="Always")

    assert of_kind(after, "Deployment") == of_kind(before, "Deployment")


def test_a_deployment_edited_by_hand_is_wanted_as_it_was() -> None:
    snapshot = pipe_snapshot()
    before = rendered(snapshot)
    edited = json.loads(json.dumps(before))
    for deployment in of_kind(edited, "Deployment"):
        container_of(deployment)["image"] = "nginx"

    assert rendered(living(snapshot, edited)) == before


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda manifest: "no base64 !", id="garbage"),
        pytest.param(lambda manifest: pack({**manifest, "kind": "Secret"}), id="another kind"),
        pytest.param(
            lambda manifest: pack({**manifest, "metadata": {**manifest["metadata"], "namespace": "kube-system"}}),
            id="another namespace",
        ),
        pytest.param(
            lambda manifest: pack({**manifest, "metadata": {**manifest["metadata"], "ownerReferences": []}}),
            id="nobody's",
        ),
        pytest.param(lambda manifest: pack({"metadata": []}), id="no object"),
        pytest.param(lambda manifest: pack({"padding": "x" * 2**20}), id="too large"),
    ],
)
def test_a_rendering_that_is_not_of_this_deployment_is_not_applied(spoil: Any) -> None:
    snapshot = pipe_snapshot()
    before = rendered(snapshot)
    spoiled = json.loads(json.dumps(before))
    for deployment in of_kind(spoiled, "Deployment"):
        annotations = deployment["metadata"]["annotations"]
        annotations[RENDERED] = spoil(unpack(annotations[RENDERED]))

    assert rendered(living(snapshot, spoiled)) == before


def test_an_upgraded_operator_with_another_node_image_changes_no_deployment() -> None:
    snapshot = pipe_snapshot()
    before = rendered(snapshot)

    after = rendered(living(snapshot, before), node_image="languagepipes-node:2")

    assert of_kind(after, "Deployment") == of_kind(before, "Deployment")


def test_before_there_is_a_plan_an_upgraded_operator_leaves_the_store_alone() -> None:
    snapshot = pipe_snapshot()
    before = store_children(snapshot, settings())

    after = store_children(living(snapshot, before), settings(node_image="languagepipes-node:2"))

    assert after == before


def store_of(manifests: list[Manifest]) -> Manifest:
    (store,) = of_kind(manifests, "Deployment", "store")
    return store


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"])
def test_a_store_whose_image_was_never_had_takes_the_corrected_one_at_once(reason: str) -> None:
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
def test_a_store_whose_image_is_had_keeps_it(state: dict[str, Any] | None) -> None:
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


def test_a_planned_pipes_store_alone_takes_the_operators_image_where_its_own_is_gone() -> None:
    snapshot = pipe_snapshot()
    stored = stored_plan_of(snapshot)
    before = rendered(snapshot, stored)
    stuck = with_pods(living(snapshot, before), [pod_of_deployment(store_of(before), state=waiting("ErrImagePull"))])

    after = rendered(stuck, stored, node_image="languagepipes-node:2")

    assert [one for one in after if one not in before] == [store_of(after)]
    assert container_of(store_of(after))["image"] == "languagepipes-node:2"
    assert rendered(living(snapshot, after), stored, node_image="languagepipes-node:2") == after


def test_a_mirror_of_the_hub_is_told_to_stores_of_hub_sources_alone() -> None:
    mirrored = settings(hub_endpoint="https://hub.example")

    def environment(source: str) -> dict[str, str]:
        children = store_children(pipe_snapshot(source=source), mirrored)
        return {item["name"]: item["value"] for item in container_of(of_kind(children, "Deployment")[0])["env"]}

    assert environment("hf://Qwen/Qwen3-8B")["HF_ENDPOINT"] == "https://hub.example"
    assert "HF_ENDPOINT" not in environment("pvc://weights/qwen3")


def test_a_mirror_that_comes_later_changes_no_store_of_another_source() -> None:
    for source, changes in (("hf://Qwen/Qwen3-8B", True), ("pvc://weights/qwen3", False)):
        before = store_children(pipe_snapshot(source=source), settings())
        after = store_children(
            living(pipe_snapshot(source=source), before), settings(hub_endpoint="https://hub.example")
        )
        assert (after != before) is changes


def authorities(*names: str) -> str:
    return "".join(new_ca("hub", name).certificate.decode() for name in names)


def test_authorities_of_the_hub_are_mounted_by_stores_of_hub_sources_alone() -> None:
    bundle = authorities("one", "two")

    children = rendered(pipe_snapshot(), hub_ca_bundle=bundle)
    (config_map,) = of_kind(children, "ConfigMap", "store")
    (store,) = of_kind(children, "Deployment", "store")
    mounts = {mount["name"]: mount for mount in container_of(store)["volumeMounts"]}
    environment = {item["name"]: item["value"] for item in container_of(store)["env"]}

    assert config_map["data"] == {"ca.crt": bundle}
    volume = {"name": "hub-ca", "configMap": {"name": config_map["metadata"]["name"]}}
    assert volume in pod_of(store)["volumes"]
    assert mounts["hub-ca"]["readOnly"] is True
    assert environment["LANGUAGEPIPES_HUB_CA_FILE"] == f"{mounts['hub-ca']['mountPath']}/ca.crt"
    for deployment in of_kind(children, "Deployment"):
        assert (volume in pod_of(deployment)["volumes"]) is (deployment is store)
    elsewhere = {"source": "pvc://weights/qwen3"}
    assert rendered(pipe_snapshot(**elsewhere), hub_ca_bundle=bundle) == rendered(pipe_snapshot(**elsewhere))


def test_other_authorities_roll_the_store_alone_and_none_bring_back_what_was() -> None:
    snapshot = pipe_snapshot()
    plain = rendered(snapshot)
    before = rendered(living(snapshot, plain), hub_ca_bundle=authorities("one"))

    after = rendered(living(snapshot, before), hub_ca_bundle=authorities("another"))
    again = rendered(living(snapshot, after))

    (old,), (new,) = (of_kind(manifests, "ConfigMap", "store") for manifests in (before, after))
    assert new["metadata"]["name"] != old["metadata"]["name"]
    unlike = [one["metadata"]["labels"]["languagepipes.io/role"] for one in after if one not in before]
    assert unlike == ["store", "store"]  # the ConfigMap and the Deployment
    assert again == plain


@pytest.mark.parametrize("planned", [False, True])
def test_authorities_that_are_no_longer_trusted_are_pruned(planned: bool) -> None:
    snapshot, old = pipe_snapshot(), settings(hub_ca_bundle=authorities("one"))
    stored = stored_plan_of(snapshot)
    before = rendered(snapshot, stored, hub_ca_bundle=old.hub_ca_bundle) if planned else store_children(snapshot, old)
    (config_map,) = of_kind(before, "ConfigMap", "store")

    def pruned(operator: OperatorSettings) -> list[Manifest]:
        live = living(snapshot, before)
        wanted = (
            rendered(live, stored, hub_ca_bundle=operator.hub_ca_bundle) if planned else store_children(live, operator)
        )
        return of_kind(surplus_children(wanted, live.children, planned=planned), "ConfigMap")

    assert pruned(old) == []
    assert pruned(settings(hub_ca_bundle=authorities("another"))) == [config_map]


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


def told_revision(manifests: list[Manifest]) -> str:
    (store,) = of_kind(manifests, "Deployment", "store")
    return {item["name"]: item["value"] for item in container_of(store)["env"]}["LANGUAGEPIPES_REVISION"]


def test_a_store_that_lost_its_volume_after_its_branch_moved_is_told_the_plans_commit() -> None:
    snapshot = pipe_snapshot()
    stored = stored_plan_of(snapshot)
    before = rendered(snapshot, stored)
    same = StoreReport(answered=True, facts=stored.facts)
    moved = StoreReport(answered=True, facts=replace(stored.facts, revision="another"))

    at_first = rendered(replace(living(snapshot, before), store=same), stored)
    then = rendered(replace(living(snapshot, before), store=moved), stored)
    later = rendered(replace(living(snapshot, then), store=None), stored)

    assert (told_revision(at_first), told_revision(then), told_revision(later)) == ("main", "c0ffee", "c0ffee")
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

    after = rendered(living(snapshot, before), newer, node_image="languagepipes-node:2")

    assert {container_of(deployment)["image"] for deployment in of_kind(after, "Deployment")} == {
        "languagepipes-node:2"
    }


def test_other_reasons_for_the_same_plan_change_no_deployment_and_no_config_map() -> None:
    snapshot = pipe_snapshot()
    stored = stored_plan_of(snapshot)
    before = rendered(snapshot, stored)
    stages = tuple(replace(stage, reason="because") for stage in stored.plan.stages)
    reworded = replace(stored, plan=replace(stored.plan, reasons=("other words",), stages=stages))

    assert inputs_of(rendered(snapshot, reworded)) == inputs_of(before)
    assert rendered(living(snapshot, before), reworded) == before


@pytest.mark.parametrize(
    ("change", "rolled"),
    [
        pytest.param({"server": {"maxConcurrentRequests": 8}}, {"end-model"}, id="server"),
        pytest.param({"server": {"apiKeysSecretRef": {"name": "keys"}}}, {"end-model"}, id="API keys"),
        pytest.param({"model": {"servedName": "other"}}, {"end-model"}, id="served name"),
        pytest.param({"model": {"tokenSecretRef": {"name": "hf", "key": "token"}}}, {"store"}, id="token"),
        pytest.param({"cache": {"size": "4Gi"}}, {"store"}, id="cache"),
        pytest.param({"stages": {"count": 3, "template": {"nodeSelector": {"a": "b"}}}}, {"stage"}, id="template"),
        pytest.param({"endModel": {"template": {"nodeSelector": {"a": "b"}}}}, {"end-model", "store"}, id="end model"),
        pytest.param({"networkPolicy": {"enabled": False}}, set(), id="policies"),
        pytest.param({"replicas": 2}, set(), id="replicas"),
        pytest.param({"paused": True}, set(), id="paused"),
    ],
)
def test_a_changed_field_rolls_only_the_pods_that_it_shapes(change: dict[str, Any], rolled: set[str]) -> None:
    stored = stored_plan_of(pipe_snapshot())
    before = rendered(pipe_snapshot(), stored)
    live = living(pipe_snapshot(**change), before).children

    after = rendered(pipe_snapshot(**change, children=live), stored)

    old = {manifest["metadata"]["name"]: manifest for manifest in of_kind(before, "Deployment")}
    changed = {
        manifest["metadata"]["labels"]["languagepipes.io/role"]
        for manifest in of_kind(after, "Deployment")
        if manifest["metadata"]["name"] in old and pod_of(manifest) != pod_of(old[manifest["metadata"]["name"]])
    }
    assert changed == rolled


def test_the_plan_comes_back_from_its_config_map_as_it_went_in() -> None:
    snapshot = pipe_snapshot()
    stored = stored_plan_of(snapshot)

    (config_map,) = of_kind(rendered(snapshot, stored), "ConfigMap")

    assert stored_plan(config_map) == stored


@pytest.mark.parametrize("spoil", [{}, {"plan.json": "{}"}, {"plan.json": "nothing"}])
def test_a_config_map_without_a_plan_keeps_none(spoil: dict[str, str]) -> None:
    (config_map,) = of_kind(rendered(pipe_snapshot()), "ConfigMap")

    assert stored_plan({**config_map, "data": spoil and {**config_map["data"], **spoil}}) is None
