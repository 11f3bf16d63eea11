"""A plan is kept until the spec asks for another one; what templates say is judged against the kept one, too."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

from example_pipes import FACTS, pipe_snapshot
from languagepipes_operator.cluster import plans
from languagepipes_operator.cluster.informer import trimmed_pod
from languagepipes_operator.cluster.manifests.plan import plan_config_map
from languagepipes_operator.cluster.plans import Chosen, choose
from languagepipes_operator.cluster.snapshot import Children, Snapshot
from languagepipes_operator.planning import node_of
from languagepipes_operator.planning.kubernetes_nodes import pod_request

GIB = 2**30


def kept_with(template: dict[str, Any]) -> Snapshot:
    """A pipe whose plan was made without a template, and whose stages have this one now."""
    before = pipe_snapshot()
    made = choose(before, facts=FACTS, node_image="image:1").kept
    assert made is not None
    config_map = plan_config_map(before, made)
    after = pipe_snapshot(stages={"count": 3, "template": template})
    return replace(after, children=Children(config_maps={config_map["metadata"]["name"]: config_map}))


def limited_to(memory: str) -> Snapshot:
    return kept_with({"resources": {"limits": {"memory": memory}}})


def chosen(snapshot: Snapshot) -> Chosen:
    return choose(snapshot, facts=None, node_image="image:2")


def test_a_template_that_leaves_enough_keeps_the_plan() -> None:
    snapshot = limited_to("64Gi")
    found = chosen(snapshot)
    assert found.kept is not None
    assert not found.made
    assert plans.is_planned(snapshot.pipe.spec, snapshot.children.config_maps.values())


def test_a_limit_below_the_kept_plan_s_need_asks_for_another_plan_within_it() -> None:
    snapshot = limited_to("1Gi")
    found = chosen(snapshot)
    assert found.kept is not None
    assert found.made
    assert all(stage.weight_bytes + stage.kv_bytes + stage.overhead_bytes <= GIB for stage in found.kept.plan.stages)
    assert not plans.is_planned(snapshot.pipe.spec, snapshot.children.config_maps.values())

    config_map = plan_config_map(snapshot, found.kept)
    children = {**snapshot.children.config_maps, config_map["metadata"]["name"]: config_map}
    again = replace(snapshot, children=Children(config_maps=children))
    assert chosen(again).kept == found.kept
    assert not chosen(again).made


def test_a_limit_that_holds_no_sequence_is_refused_also_with_a_kept_plan() -> None:
    refusal = chosen(limited_to("100Mi")).refusal
    assert refusal is not None
    assert refusal.reason == "LimitTooSmall"


def test_a_template_that_contradicts_itself_is_refused_also_with_a_kept_plan() -> None:
    refusal = chosen(kept_with({"resources": {"limits": {"cpu": 1}, "requests": {"cpu": 2}}})).refusal
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
