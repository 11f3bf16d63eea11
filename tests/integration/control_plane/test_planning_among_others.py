"""Several pipes, one cluster: nobody books what another has, and nobody holds half a ring for ever."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from cluster import ControlPlane
from languagepipes_api.names import LABEL_MANAGED_BY, LABEL_PIPE, LABEL_ROLE, MANAGED_BY
from languagepipes_api.spec import parse_pipe
from languagepipes_operator.names import ANNOTATION_INPUTS
from languagepipes_operator.observe.stored_plans import FACTS_KEY, IMAGE_KEY, PLAN_KEY
from languagepipes_operator.planning import plan
from languagepipes_operator.planning.inputs import model_inputs
from support.planned_models import SMOLLM2
from support.served_namespace import Object, ServedNamespace, control_plane_with_crd, eventually, pipe_of

GPU = "nvidia.com/gpu"
ON_GPUS = {"count": 2, "device": "GPU"}


@pytest.fixture(scope="module")
def control_plane() -> Iterator[ControlPlane]:
    """Of their own: these operators serve all namespaces, and would see the pipes and nodes of other tests."""
    with control_plane_with_crd() as control_plane:
        yield control_plane


def _tell_facts(served: ServedNamespace, pipe: Object) -> None:
    """As if the pipe had been planned before, with other stages: then its model's facts are known without a store."""
    spec = parse_pipe({**pipe, "spec": {**pipe["spec"], "stages": {"count": 3}}}, local=False).spec
    metadata = pipe["metadata"]
    owner = {
        "apiVersion": pipe["apiVersion"],
        "kind": pipe["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": False,
    }
    served.api.create(
        served.path("ConfigMap"),
        {
            "metadata": {
                "name": f"{metadata['name']}-earlier",
                "labels": {LABEL_MANAGED_BY: MANAGED_BY, LABEL_PIPE: metadata["name"], LABEL_ROLE: "plan"},
                "annotations": {ANNOTATION_INPUTS: f"{model_inputs(spec)}00000000"},
                "ownerReferences": [owner],
            },
            "data": {
                PLAN_KEY: json.dumps(plan(spec, SMOLLM2).to_json()),
                FACTS_KEY: json.dumps(SMOLLM2.to_json()),
                IMAGE_KEY: "languagepipes-node:test",
            },
        },
    )


def _pipes(served: ServedNamespace, *names: str, **spec: object) -> None:
    made = [
        served.api.apply(served.path("LanguagePipe", name), pipe_of(name, stages=ON_GPUS, **spec)) for name in names
    ]
    for pipe in made:
        _tell_facts(served, pipe)


def _gpu_pods(served: ServedNamespace) -> dict[str, int]:
    """How many stages of each pipe are on a node."""
    found: dict[str, int] = {}
    for pod in served.list("Pod", labels=f"{LABEL_ROLE}=stage"):
        if pod["spec"].get("nodeName"):
            pipe = pod["metadata"]["labels"][LABEL_PIPE]
            found[pipe] = found.get(pipe, 0) + 1
    return found


def test_ten_pipes_that_compete_for_six_gpus_end_as_three_rings_and_seven_that_say_what_they_wait_for(
    served: ServedNamespace, control_plane: ControlPlane
) -> None:
    served.started(NAMESPACES="")
    names = [f"pipe-{number}" for number in range(10)]
    for node in ("gpus-1", "gpus-2"):
        control_plane.add_node(node, allocatable={GPU: "3"}, labels={f"{GPU}.memory": "16384"}, runs_pods=True)
    try:
        _pipes(served, *names)

        eventually(lambda: sorted(_gpu_pods(served).values()) == [2, 2, 2], what="three rings")
        winners = set(_gpu_pods(served))
        for name in set(names) - winners:
            refused = eventually(lambda name=name: _refused(served, name), what=f"{name} says what it waits for")
            assert "2 GPUs, and 0 are free" in refused["message"]
        served.api.delete(served.path("LanguagePipe", min(winners)))
        # Members that go are told at once: without news the others are tried again after half a minute.
        eventually(lambda: len(set(_gpu_pods(served)) - winners) == 1, what="another pipe has the GPUs")
        eventually(lambda: sorted(_gpu_pods(served).values()) == [2, 2, 2], what="three rings again")
    finally:
        # The operators of other tests serve all namespaces, too: pipes that wait for GPUs would take those that come.
        for name in names:
            served.api.delete(served.path("LanguagePipe", name))
        eventually(lambda: not served.list("Pod", labels=f"{LABEL_ROLE}=stage"), what="no stage is left")
        for node in ("gpus-1", "gpus-2"):
            control_plane.remove_node(node)


def _refused(served: ServedNamespace, name: str) -> Object | None:
    planned = served.condition("Planned", name)
    return planned if planned["reason"] == "InsufficientGPUs" else None


def test_half_a_ring_gives_way_and_is_tried_again(served: ServedNamespace, control_plane: ControlPlane) -> None:
    served.started(NAMESPACES="")
    # Pods are bound there and never Ready, and the End Model's too: it is not without its ring.
    of_no_kubelet = {f"{GPU}.memory": "16384"}
    control_plane.add_node("lone-gpu-1", allocatable={GPU: "1"}, labels=of_no_kubelet)
    try:
        _pipes(
            served,
            "pipe",
            placement={"allowPending": True},
            rollout={"progressDeadlineSeconds": 10, "maxSurge": 1},
            endModel={"template": {"nodeSelector": of_no_kubelet}},
        )
        eventually(lambda: served.condition("Ready")["reason"] == "Unschedulable", what="words of Pending")
        assert served.pipe()["status"]["phase"] == "Pending"

        eventually(lambda: served.condition("Ready")["reason"] == "GaveWay", what="it gives way")

        eventually(lambda: not _gpu_pods(served), what="nothing of it holds a GPU")
        assert "Insufficient nvidia.com/gpu" in served.condition("Ready")["message"]
        control_plane.add_node("lone-gpu-2", allocatable={GPU: "1"}, labels=of_no_kubelet)
        eventually(lambda: _gpu_pods(served) == {"pipe": 2}, what="it is tried again")
        control_plane.remove_node("lone-gpu-2")
    finally:
        control_plane.remove_node("lone-gpu-1")
