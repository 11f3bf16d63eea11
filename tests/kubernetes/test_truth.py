"""Each failure, caused for real: the condition names its reason, says it in a sentence, and has the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cluster import Cluster
from installation import Installation
from kubectl import Kubectl
from serving import CLAIM, Images, fill_claim, pipe, wait_condition, wait_for_reason, wait_ready

pytestmark = pytest.mark.kubernetes


@pytest.fixture(scope="module")
def kubectl(operator: Installation, new_namespace: Callable[[str], Kubectl], images: Images) -> Kubectl:
    """A namespace of its own, with weights."""
    made = new_namespace("truth")
    fill_claim(made, images)
    return made


LIMITED = {"resources": {"limits": {"memory": "64Mi"}}}
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    # name: (the pipe's spec, the reason, what the message says)
    "no-such-claim": (
        {"model": {"source": "pvc://absent/model.gguf"}},
        "MissingClaim",
        r"absent.*source",
    ),
    "no-such-file": (
        {"model": {"source": f"pvc://{CLAIM}/absent.gguf"}},
        r"\w*Found|\w*Missing\w*",
        r"absent\.gguf",
    ),
    "no-such-secret": (
        {"server": {"apiKeysSecretRef": {"name": "absent"}}},
        "MissingSecret",
        r"absent.*apiKeysSecretRef",
    ),
    "no-such-class": (
        {"cache": {"size": "1Gi", "storageClassName": "absent"}},
        "MissingStorageClass",
        r"absent.*storageClassName",
    ),
    "no-such-token": (
        {"model": {"source": "hf://owner/model", "tokenSecretRef": {"name": "absent", "key": "token"}}},
        "MissingSecret",
        r"absent.*tokenSecretRef",
    ),
    "too-many-layers": (
        {"endModel": {"localLayers": 29}, "stages": {"count": 3}},
        r"\w+",
        r"30 layers|layer",
    ),
    "too-small": (
        {"stages": {"list": [{"name": "tiny", "memory": "1Mi"}, {"name": "rest"}]}},
        r"\w+",
        r"tiny.*MiB|MiB.*tiny",
    ),
    "no-such-node": (
        {"stages": {"count": 1, "template": {"nodeSelector": {"disk": "absent"}}}},
        r"\w+",
        r"disk",
    ),
    "no-gpu": (
        {"stages": {"count": 1, "device": "GPU"}},
        r"\w+",
        r"GPU|nvidia\.com/gpu",
    ),
    "out-of-memory": (
        {"stages": {"count": 1, "template": LIMITED}},
        "OOMKilled",
        r"64Mi.*(raise|more)",
    ),
    "no-such-class-of-priority": (
        {"stages": {"count": 1, "template": {"priorityClassName": "absent"}}},
        "MissingPriorityClass",
        r"absent.*priorityClassName|priorityClassName.*absent",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_ready_says_what_is_wrong_and_what_helps(kubectl: Kubectl, name: str) -> None:
    spec, reason, text = CASES[name]
    kubectl.apply(pipe(name, **spec))
    try:
        found = wait_for_reason(kubectl, name, reason, text)
        assert len(found["message"]) <= 1024
        events = kubectl("get", "events", "--field-selector", f"involvedObject.name={name}", "-o", "json")
        assert found["reason"] in events
    finally:
        kubectl("delete", "lp", name, "--wait=true", "--timeout=60s")


def test_an_image_that_cannot_be_pulled(kubectl: Kubectl, operator: Installation, smollm2: Kubectl) -> None:
    """Of a pipe made with a wrong image; the one that runs already keeps its own image and every pod."""
    selector = "languagepipes.io/pipe=smollm2"
    wait_ready(smollm2)
    before = {pod["metadata"]["uid"] for pod in smollm2.list("pods", selector)}
    operator.install("--set-string", "nodeImage.tag=absent")
    try:
        kubectl.apply(pipe("wrong-image"))
        wait_for_reason(kubectl, "wrong-image", "ImagePullBackOff", "absent")
        assert {pod["metadata"]["uid"] for pod in smollm2.list("pods", selector)} == before
    finally:
        kubectl("delete", "lp", "wrong-image", "--wait=true", "--timeout=60s")
        operator.install()


def test_a_stage_in_a_crash_loop_tells_its_last_words(kubectl: Kubectl, our_cluster: Cluster) -> None:
    """A node that promises a GPU and has none: torch finds none, and the stage says so as it ends."""
    node = kubectl.list("nodes")[0]["metadata"]["name"]
    promise = '{"status": {"capacity": {"nvidia.com/gpu": "1"}, "allocatable": {"nvidia.com/gpu": "1"}}}'
    kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", promise)
    try:
        kubectl.apply(pipe("false-promise", stages={"list": [{"name": "gpu", "device": "GPU", "memory": "4Gi"}]}))
        found = wait_for_reason(kubectl, "false-promise", "CrashLoopBackOff", "torch", seconds=180)
        assert "gpu" in found["message"]
    finally:
        kubectl("delete", "lp", "false-promise", "--wait=true", "--timeout=60s")
        kubectl(
            *("patch", "node", node, "--subresource=status", "--type=json", "-p"),
            '[{"op": "remove", "path": "/status/capacity/nvidia.com~1gpu"}]',
        )


def test_another_mans_service_of_the_same_name_is_left_alone(kubectl: Kubectl) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "taken"},
        "spec": {"ports": [{"port": 80}], "selector": {"theirs": "yes"}},
    }
    kubectl.apply(service)
    kubectl.apply(pipe("taken"))
    try:
        wait_condition(kubectl, "Ready", "False", name="taken", reason="NameConflict")
        assert kubectl.get("service", "taken")["spec"]["selector"] == {"theirs": "yes"}
        assert "ownerReferences" not in kubectl.get("service", "taken")["metadata"]
    finally:
        kubectl("delete", "lp", "taken", "--wait=true", "--timeout=60s")
        kubectl("delete", "service", "taken")
