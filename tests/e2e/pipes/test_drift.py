"""Children that somebody deletes or edits come back as they were; what others add stays; nobody else is disturbed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from cluster import Cluster
from support.installation import DEPLOYMENT, Installation
from support.kubectl import Kubectl, wait_for
from support.members import alive
from support.serving import Client, Images, pipe, wait_condition, wait_ready

pytestmark = pytest.mark.kubernetes

OF_PIPE = "languagepipes.io/pipe=smollm2"
REPLICA = "languagepipes.io/chain"
KINDS = ("deployment", "service", "secret", "configmap", "poddisruptionbudget", "networkpolicy")
# What somebody may do to each kind: a JSON patch, and what it touches. A plan's ConfigMap is immutable but for labels.
EDITS: dict[str, tuple[list[dict[str, Any]], Callable[[dict[str, Any]], Any]]] = {
    "deployment": (
        [{"op": "replace", "path": "/spec/replicas", "value": 0}],
        lambda found: found["spec"]["replicas"],
    ),
    "service": (
        [{"op": "replace", "path": "/spec/ports/0/targetPort", "value": 1234}],
        lambda found: found["spec"]["ports"],
    ),
    "secret": (
        [{"op": "replace", "path": "/data/ca.crt", "value": "bm90aGluZw=="}],
        lambda found: found["data"]["ca.crt"],
    ),
    "configmap": (
        [{"op": "replace", "path": "/metadata/labels/languagepipes.io~1role", "value": "other"}],
        lambda found: found["metadata"]["labels"]["languagepipes.io/role"],
    ),
    "poddisruptionbudget": (
        [{"op": "replace", "path": "/spec/maxUnavailable", "value": 2}],
        lambda found: found["spec"]["maxUnavailable"],
    ),
    "networkpolicy": (
        [{"op": "replace", "path": "/spec/ingress", "value": []}],
        lambda found: found["spec"].get("ingress"),
    ),
}


def uids(kubectl: Kubectl, kind: str) -> dict[str, str]:
    return {item["metadata"]["name"]: item["metadata"]["uid"] for item in kubectl.list(kind, OF_PIPE)}


def versions(kubectl: Kubectl) -> dict[str, str]:
    """Of the pipe and all children, changed by any write to them; and which pods there are."""
    found = {"languagepipe": kubectl.get("languagepipe", "smollm2")["metadata"]["resourceVersion"]}
    for item in kubectl.list(",".join(KINDS), OF_PIPE):
        found[f"{item['kind']}/{item['metadata']['name']}"] = item["metadata"]["resourceVersion"]
    for pod in kubectl.list("pods", OF_PIPE):
        restarts = sum(status["restartCount"] for status in pod["status"]["containerStatuses"])
        found[f"Pod/{pod['metadata']['name']}"] = f"{pod['metadata']['uid']}, {restarts} restarts"
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_deleted_child_comes_back(smollm2: Kubectl, kind: str) -> None:
    before = uids(smollm2, kind)
    assert before
    name = sorted(before)[0]
    smollm2("delete", kind, name, "--wait=true")
    wait_for(
        f"{kind} {name} again", lambda: uids(smollm2, kind).get(name) not in (None, before[name]), timeout_seconds=30
    )
    after = wait_for(
        "all children", lambda: (now := uids(smollm2, kind)).keys() == before.keys() and now, timeout_seconds=30
    )
    assert {other: uid for other, uid in after.items() if other != name} == {
        other: uid for other, uid in before.items() if other != name
    }
    wait_ready(smollm2)


def test_a_deleted_claim_of_the_cache_comes_back(
    operator: Installation, new_namespace: Callable[[str], Kubectl]
) -> None:
    kubectl = new_namespace("cache")
    kubectl.apply(pipe(cache={"size": "1Gi"}))
    first = wait_for("the claim", lambda: kubectl.list("persistentvolumeclaim", OF_PIPE))[0]["metadata"]
    kubectl("delete", "persistentvolumeclaim", first["name"], "--wait=false")
    wait_for(
        "another claim", lambda: uids(kubectl, "persistentvolumeclaim").get(first["name"]) not in (None, first["uid"])
    )


@pytest.mark.parametrize("kind", EDITS)
def test_an_edited_child_is_put_back_and_what_others_add_stays(smollm2: Kubectl, kind: str) -> None:
    patch, touched = EDITS[kind]
    role = ",languagepipes.io/role=stage" if kind in ("deployment", "secret") else ""
    before = sorted(smollm2.list(kind, OF_PIPE + role), key=lambda item: str(item["metadata"]["name"]))[0]
    name = before["metadata"]["name"]
    smollm2("label", kind, name, "theirs=kept")
    smollm2("annotate", kind, name, "theirs.io/note=kept")
    smollm2("patch", kind, name, "--type=json", "-p", json.dumps(patch))
    wait_for("what it was", lambda: touched(smollm2.get(kind, name)) == touched(before), timeout_seconds=30)
    after = smollm2.get(kind, name)["metadata"]
    assert after["uid"] == before["metadata"]["uid"]
    assert after["labels"]["theirs"] == "kept"
    assert after["annotations"]["theirs.io/note"] == "kept"
    wait_ready(smollm2)


def test_a_child_that_lost_its_labels_gets_them_back(smollm2: Kubectl) -> None:
    """The operator watches by label, so this child is out of its sight and still holds its name."""
    before = smollm2.get("service", "smollm2")["metadata"]
    smollm2("label", "service", "smollm2", "app.kubernetes.io/managed-by-", "languagepipes.io/pipe-")
    wait_for(
        "its labels",
        lambda: smollm2.get("service", "smollm2")["metadata"].get("labels") == before["labels"],
        timeout_seconds=30,
    )
    assert smollm2.get("service", "smollm2")["metadata"]["uid"] == before["uid"]


def test_a_restarted_operator_restarts_no_pod_and_writes_nothing(smollm2: Kubectl, operator: Installation) -> None:
    old = operator.leader()
    settle(smollm2)
    before = versions(smollm2)
    operator.kubectl("rollout", "restart", DEPLOYMENT)
    operator.wait_acting(other_than=[old])
    time.sleep(3)
    assert versions(smollm2) == before


@pytest.fixture
def next_version(our_cluster: Cluster, images: Images) -> tuple[str, ...]:
    """What helm is told for an upgrade: both images under another tag, as a later version would have them."""
    tag = "999.0.0"
    names = [f"docker.io/library/{image.rpartition(':')[0]}" for image in (images.operator, images.node)]
    versions = [image.rpartition(":")[2] for image in (images.operator, images.node)]
    for node in our_cluster.nodes:
        for name, version in zip(names, versions, strict=True):
            node.ctr("images", "tag", "--force", f"{name}:{version}", f"{name}:{tag}")
    return ("--set-string", f"image.tag={tag}", "--set-string", f"nodeImage.tag={tag}")


def test_an_upgraded_operator_restarts_no_pod_and_writes_nothing(
    smollm2: Kubectl, operator: Installation, next_version: tuple[str, ...]
) -> None:
    old = operator.leader()
    settle(smollm2)
    before = versions(smollm2)
    operator.install(*next_version)
    try:
        new = operator.wait_acting(other_than=[old])
        running = operator.kubectl.get("pod", new)["spec"]["containers"][0]
        assert running["image"].endswith(":999.0.0")
        assert any(variable.get("value", "").endswith(":999.0.0") for variable in running["env"])
        time.sleep(3)
        assert versions(smollm2) == before
    finally:
        operator.install()
    operator.wait_acting(other_than=[old, new])
    assert versions(smollm2) == before


def test_changed_nodes_restart_no_pod_and_cause_no_write(smollm2: Kubectl, our_cluster: Cluster) -> None:
    """A label, a resource more, and a far larger node that joins: a plan once made stays."""
    settle(smollm2)
    before = versions(smollm2)
    node = our_cluster.nodes[0].name
    more = {"status": {"capacity": {"example.com/thing": "4"}, "allocatable": {"example.com/thing": "4"}}}
    smollm2("label", "node", node, "disk=fast")
    smollm2("patch", "node", node, "--subresource=status", "--type=merge", "-p", json.dumps(more))
    our_cluster.control_plane.add_node("large", allocatable={"memory": "512Gi", "cpu": "128", "nvidia.com/gpu": "8"})
    try:
        time.sleep(10)
        assert versions(smollm2) == before
    finally:
        our_cluster.control_plane.remove_node("large")
        smollm2("label", "node", node, "disk-")
        for place in ("allocatable", "capacity"):
            less = [{"op": "remove", "path": f"/status/{place}/example.com~1thing"}]
            smollm2.run("patch", "node", node, "--subresource=status", "--type=json", "-p", json.dumps(less))


def settle(kubectl: Kubectl) -> None:
    """Until nothing has been written for a while: a pod's readiness is told a moment after the pipe's. And until no pod
    is leaving, which a stage of an earlier test may do for as long as it serves on after SIGTERM."""
    seen: list[tuple[float, dict[str, str]]] = []

    def still() -> bool:
        if any("deletionTimestamp" in pod["metadata"] for pod in kubectl.list("pods", OF_PIPE)):
            seen.clear()
            return False
        now = versions(kubectl)
        if not seen or seen[-1][1] != now:
            seen.append((time.monotonic(), now))
        return time.monotonic() - seen[-1][0] > 4

    wait_for("a pipe at rest", still)


def test_zero_replicas_stop_the_ring_and_keep_the_store(smollm2: Kubectl) -> None:
    smollm2("scale", "lp/smollm2", "--replicas=0")
    wait_condition(smollm2, "Ready", "True", reason="ScaledToZero")
    wait_for("no stages", lambda: not smollm2.list("pods", f"{OF_PIPE},languagepipes.io/role=stage"))
    assert smollm2.list("deployment", f"{OF_PIPE},languagepipes.io/role=store")
    smollm2("scale", "lp/smollm2", "--replicas=1")
    wait_ready(smollm2)


def test_of_two_replicas_the_one_that_does_not_answer_goes_first(
    smollm2: Kubectl, client: Client, our_cluster: Cluster
) -> None:
    smollm2("scale", "lp/smollm2", "--replicas=2")
    nodes = [node.name for node in our_cluster.nodes]
    try:
        status = wait_ready(smollm2)["status"]
        assert (status["replicas"], status["readyReplicas"]) == (2, 2)
        end_models = {pod["metadata"]["labels"][REPLICA]: pod["metadata"]["uid"] for pod in alive(smollm2, "end-model")}
        broken, working = sorted(end_models)
        kept = {pod["metadata"]["uid"] for pod in smollm2.list("pods", f"{OF_PIPE},{REPLICA}={working}")}
        smollm2("cordon", *nodes)
        lost = f"{OF_PIPE},{REPLICA}={broken},languagepipes.io/role=stage,languagepipes.io/stage=2"
        smollm2("delete", "pods", "--selector", lost, "--grace-period=0", "--force")
        wait_condition(smollm2, "Ready", "False", reason="Unschedulable", timeout_seconds=30)
        wait_for(
            "one replica that answers",
            lambda: smollm2.get("languagepipe", "smollm2")["status"]["readyReplicas"] == 1,
            timeout_seconds=30,
        )
        # The kubelet's probe has to fail twice. What comes to the broken replica before that waits there.
        wait_for("one endpoint", lambda: endpoints(smollm2, "smollm2") == {end_models[working]}, timeout_seconds=30)
        time.sleep(2)  # kube-proxy follows at least once a second
        for _ in range(3):
            assert "Paris" in "".join(client.ask(status["url"], "What is the capital of France?"))
        smollm2("scale", "lp/smollm2", "--replicas=1")
        wait_condition(smollm2, "Ready", "True", timeout_seconds=30)
        wait_for("no broken replica", lambda: not smollm2.list("deployment", f"{OF_PIPE},{REPLICA}={broken}"))
        now = {pod["metadata"]["uid"] for pod in smollm2.list("pods", f"{OF_PIPE},{REPLICA}={working}")}
        assert now == kept
        assert "Paris" in "".join(client.ask(status["url"], "What is the capital of France?"))
    finally:
        smollm2("uncordon", *nodes)
        smollm2("scale", "lp/smollm2", "--replicas=1")


def endpoints(kubectl: Kubectl, service: str) -> set[str]:
    """UIDs of the pods that the Service leads to."""
    slices = kubectl.list("endpointslices", f"kubernetes.io/service-name={service}")
    return {
        each["targetRef"]["uid"]
        for found in slices
        for each in found.get("endpoints") or []
        if each["conditions"].get("ready", True)
    }
