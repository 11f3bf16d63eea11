"""A Deployment keeps its last applied manifest as long as it exists; what shapes a pod asks for another replica, and
what does not asks for none.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from languagepipes_operator.decide.last_applied import pack, unpack
from languagepipes_operator.kube.kinds import Manifest
from support.example_pipes import (
    container_of,
    living,
    of_kind,
    pipe_snapshot,
    pod_of,
    rendered,
    stored_plan_of,
)

INPUTS = "languagepipes.io/inputs"
RENDERED = "languagepipes.io/rendered"


def inputs_of(manifests: list[Manifest]) -> dict[str, str]:
    return {
        manifest["metadata"]["name"]: manifest["metadata"]["annotations"][INPUTS]
        for manifest in of_kind(manifests, "Deployment")
    }


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
        pytest.param({"server": {"generationConfig": "none"}}, {"end-model"}, id="sampling defaults"),
        pytest.param({"server": {"generationConfig": "auto"}}, set(), id="sampling defaults as they are anyway"),
        pytest.param({"server": {"schedulingPolicy": "priority"}}, {"end-model"}, id="priorities"),
        pytest.param({"server": {"schedulingPolicy": "fair"}}, set(), id="no priorities, as it is anyway"),
        pytest.param({"server": {"cors": {"allowedOrigins": ["*"]}}}, {"end-model"}, id="web pages"),
        pytest.param({"server": {"storedResponses": {"count": 9}}}, {"end-model"}, id="stored responses"),
        pytest.param({"server": {"storedResponses": {"memory": "65536Ki"}}}, set(), id="as many as anyway"),
        pytest.param({"server": {"prefixCache": False}}, {"end-model"}, id="prefix cache"),
        pytest.param({"server": {"prefixCache": True}}, set(), id="prefix cache as it is anyway"),
        pytest.param({"server": {"speculativeDecoding": "auto"}}, {"end-model"}, id="speculative decoding"),
        pytest.param({"server": {"speculativeDecoding": "none"}}, set(), id="speculative decoding as it is anyway"),
        pytest.param({"recovery": {"maxWaitSeconds": 60}}, {"end-model"}, id="longest wait"),
        pytest.param({"recovery": {"maxReplays": 1}}, {"end-model"}, id="replays"),
        pytest.param({"recovery": {"maxWaitSeconds": 300, "maxReplays": 5}}, set(), id="recovery as it is anyway"),
        pytest.param({"rollout": {"drainSeconds": 60}}, {"end-model"}, id="time for answers"),
        pytest.param({"rollout": {"maxSurge": 2, "drainSeconds": 300}}, set(), id="limits of rollouts"),
        pytest.param({"model": {"servedName": "other"}}, {"end-model"}, id="served name"),
        pytest.param({"model": {"toolParser": "hermes"}}, {"end-model"}, id="tool parser"),
        pytest.param({"model": {"toolParser": "auto"}}, set(), id="tool parser as it is anyway"),
        pytest.param({"cache": {"size": "4Gi"}}, {"store"}, id="cache"),
        pytest.param({"stages": {"count": 3, "template": {"nodeSelector": {"a": "b"}}}}, {"stage"}, id="template"),
        pytest.param({"endModel": {"template": {"nodeSelector": {"a": "b"}}}}, {"end-model", "store"}, id="end model"),
        pytest.param({"networkPolicy": {"enabled": False}}, set(), id="policies"),
        pytest.param({"replicas": 2}, set(), id="replicas"),
        pytest.param({"paused": True}, set(), id="paused"),
    ],
)
def test_a_changed_field_makes_another_revision_only_if_it_shapes_a_pod(
    change: dict[str, Any], rolled: set[str]
) -> None:
    stored = stored_plan_of(pipe_snapshot())
    before = rendered(pipe_snapshot(), stored)
    live = living(pipe_snapshot(**change), before).children

    after = rendered(pipe_snapshot(**change, children=live), stored)

    old = {manifest["metadata"]["name"]: manifest for manifest in of_kind(before, "Deployment")}
    fresh, asked = inputs_of(before), inputs_of(rendered(pipe_snapshot(**change), stored))
    shaped = {old[name]["metadata"]["labels"]["languagepipes.io/role"] for name in fresh if asked[name] != fresh[name]}
    assert shaped == rolled
    changed = {
        manifest["metadata"]["labels"]["languagepipes.io/role"]
        for manifest in of_kind(after, "Deployment")
        if manifest["metadata"]["name"] in old and pod_of(manifest) != pod_of(old[manifest["metadata"]["name"]])
    }
    assert changed == rolled & {"store"}
    numbers = {each["metadata"]["labels"].get("languagepipes.io/chain") for each in of_kind(after, "Deployment")}
    beside = bool(rolled & {"stage", "end-model"}) or change == {"replicas": 2}
    assert numbers - {None} == ({"0", "1"} if beside else {"0"})
