"""Each failure, caused for real: the condition names its reason, says it in a sentence, and has the remedy.

Pipes that fail stand side by side, since each takes its time; each test then reads its own.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from support.installation import Installation
from support.kubectl import Kubectl, wait_for
from support.serving import CLAIM, Images, fill_claim, pipe, wait_condition, wait_for_reason, wait_ready
from support.stand_in_hub import StandIn, stand_in_hub

pytestmark = pytest.mark.kubernetes

# So that many pipes find room on two small nodes at once: it is not CPUs that they lack.
LIGHT = {"resources": {"requests": {"cpu": "10m"}}}
# Many small processes, so that the member itself is the largest, which the kernel ends, with cgroups v1 and v2 alike.
ALLOCATE = """
import os, time
for _ in range(100):
    if os.fork() == 0:
        held = bytearray(b"x") * (64 << 20)
        time.sleep(60)
time.sleep(60)
"""


# A volume that no container mounts would not keep the pod from starting.
ABSENT_FILES = {
    "volumes": [{"name": "ca", "configMap": {"name": "absent"}}],
    "volumeMounts": [{"name": "ca", "mountPath": "/etc/ssl/ours"}],
}


def light(name: str, *, model: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A pipe whose pods ask for next to no CPU."""
    made: dict[str, Any] = pipe(name, model=model, **{"endModel": {"template": LIGHT}, "stages": one_stage(), **spec})
    return made


def one_stage(**more: Any) -> dict[str, Any]:
    return {"count": 1, "template": {**LIGHT, **more}}


@dataclass(frozen=True)
class Case:
    """What is wrong with a pipe's spec, and what Ready then says: a regular expression of the whole message."""

    spec: dict[str, Any]
    reason: str
    message: str


CASES = {
    "no-such-claim": Case(
        {"model": {"source": "pvc://absent/model.gguf"}},
        "MissingClaim",
        r"the weights store: there is no PersistentVolumeClaim absent in the pipe's namespace: create it, or correct "
        r"the pvc:// claim in spec\.model\.source",
    ),
    "no-such-file": Case(
        {"model": {"source": f"pvc://{CLAIM}/absent.gguf"}},
        "FileNotFoundAtSource",
        rf"pvc://{CLAIM}/absent\.gguf: \S+/{CLAIM}/absent\.gguf does not exist; correct spec\.model\.source",
    ),
    "no-such-secret": Case(
        {"server": {"apiKeysSecretRef": {"name": "absent"}}},
        "MissingSecret",
        r"the End Model: spec\.server\.apiKeysSecretRef names the Secret absent, which does not exist in the pipe's "
        r"namespace: create it, or correct the field",
    ),
    "no-such-class": Case(
        {"cache": {"size": "1Gi", "storageClassName": "absent"}},
        "MissingStorageClass",
        r"the cache's claim no-such-class-\S+ asks for the StorageClass absent, which does not exist: create it, or "
        r"correct spec\.cache\.storageClassName and delete the claim \(kubectl delete pvc no-such-class-\S+\)",
    ),
    "no-such-token": Case(
        {"model": {"source": "hf://owner/model", "tokenSecretRef": {"name": "absent", "key": "token"}}},
        "MissingSecret",
        r"the weights store: spec\.model\.tokenSecretRef names the Secret absent, which does not exist in the pipe's "
        r"namespace: create it, or correct the field",
    ),
    "no-such-key": Case(
        {"model": {"source": "hf://owner/model", "tokenSecretRef": {"name": "token", "key": "absent"}}},
        "MissingSecretKey",
        r"the weights store: the Secret token has no key absent: add it \(kubectl create secret generic token "
        r"--from-literal=absent=…\), or correct spec\.model\.tokenSecretRef\.key",
    ),
    "too-many-stages": Case(
        {"endModel": {"localLayers": 28, "template": LIGHT}, "stages": {"count": 3}},
        "TooManyStages",
        r"3 stages, but 30 layers less 28 at the End Model leave 2: use at most 2 stages",
    ),
    "too-many-layers": Case(
        {"stages": {"list": [{"name": "first", "layers": 20}, {"name": "second", "layers": 12}]}},
        "TooManyLayersAssigned",
        r"30 layers, 33 assigned \(1 at the End Model, 32 in stages\): name at most 29 in stages",
    ),
    "too-small": Case(
        {"stages": {"list": [{"name": "tiny", "memory": "1Mi"}, {"name": "rest"}]}},
        "StageOverBudget",
        r"stage tiny: 1 layer needs [\d.]+ MiB \(weights [\d.]+ MiB, KV for one sequence of 1024 tokens [\d.]+ MiB, "
        r"overhead [\d.]+ MiB\), budget 1 MiB: raise its memory or lower maxContextLength",
    ),
    "limit-too-small": Case(
        {"stages": {"count": 1, "template": {"resources": {"limits": {"memory": "64Mi"}}}}},
        "LimitTooSmall",
        r"stage stage-1 needs [\d.]+ GiB \(weights, overhead and KV for one sequence\), and its template limits memory "
        r"to 64 MiB: [\d.]+ GiB short: raise limits\.memory or leave it out, give it fewer layers, or use a shorter "
        r"maxContextLength",
    ),
    "too-large": Case(
        {"stages": {"count": 1, "template": {"resources": {"requests": {"memory": "1Ti"}}}}},
        "StageTooLarge",
        r"stage stage-1 asks for 1 TiB of memory, and the most that is free on a node that it may run on is "
        r"[\d.]+ GiB \(\S+\): [\d.]+ GiB short: lower memory in its template, or leave it out",
    ),
    "no-such-node": Case(
        {"stages": one_stage(nodeSelector={"disk": "absent"})},
        "Unschedulable",
        r"stage stage-1: none of 2 nodes can run it: 2 do not match its nodeSelector disk=absent\. To fix this: "
        r"correct the template, or label a node",
    ),
    "no-gpu": Case(
        {"stages": {"count": 1, "device": "GPU"}},
        "NoSuchDevice",
        r"stage stage-1 asks for a GPU, but none of 2 nodes that it may run on has one: set device to CPU, or add a "
        r"node with GPUs",
    ),
    "no-such-priority": Case(
        {"stages": one_stage(priorityClassName="absent")},
        "MissingPriorityClass",
        r"stage stage-1: its pod is refused \(no PriorityClass with name absent was found\): create the class, or "
        r"correct priorityClassName in its template",
    ),
    "no-such-files": Case(
        {"stages": one_stage(**ABSENT_FILES)},
        "CreateContainerConfigError",
        r"stage stage-1: spec\.stages\.template\.volumes names the ConfigMap absent, which does not exist in the "
        r"pipe's namespace: create it, or correct the field",
    ),
    "no-such-runtime": Case(
        {"stages": one_stage(runtimeClassName="absent")},
        "MissingRuntimeClass",
        r"stage stage-1: its pod is refused \(pod rejected: RuntimeClass .absent. not found\): create the class, or "
        r"correct runtimeClassName in its template",
    ),
}


@pytest.fixture(scope="module")
def kubectl(
    operator: Installation, namespace: Callable[[str], AbstractContextManager[Kubectl]], images: Images
) -> Iterator[Kubectl]:
    """A namespace of its own, with weights."""
    with namespace("truth") as made:
        fill_claim(made, images)
        yield made


@pytest.fixture(scope="class")
def failing(kubectl: Kubectl) -> Iterator[Kubectl]:
    """All cases at once; gone again afterwards, since their stores alone ask for half of the cluster's CPUs."""
    kubectl.apply(secret("token", token="hf_unused"))
    kubectl.apply(*(light(name, **case.spec) for name, case in CASES.items()))
    yield kubectl
    kubectl("delete", "lp", "--all", "--wait=true", "--timeout=110s")


def secret(name: str, **values: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}


def assert_told(kubectl: Kubectl, name: str, reason: str, message: str, *, seconds: float = 120) -> str:
    """Ready=False for that reason, in exactly those words, in the status and in an Event; its message."""
    found = wait_for_reason(
        kubectl, name, reason, rf"\A(?:{message})(?: \(and \d+ more: [\w, ]+\))?\Z", seconds=seconds
    )
    said = str(found["message"])
    assert len(said) <= 1024
    if kept := os.environ.get("E2E_LOGS"):
        Path(kept).mkdir(parents=True, exist_ok=True)
        with Path(kept, "told.txt").open("a") as file:
            file.write(f"{name}\n    {found['reason']}: {said}\n")

    def event() -> bool:
        events = kubectl("get", "events", "--field-selector", f"involvedObject.name={name}", "-o", "json")
        return any((item["type"], item["reason"]) == ("Warning", reason) for item in json.loads(events)["items"])

    wait_for(f"an Event {reason} of {name}", event)
    return said


class TestSideBySide:
    @pytest.mark.parametrize("name", CASES)
    def test_ready_says_what_is_wrong_and_what_helps(self, failing: Kubectl, name: str) -> None:
        assert_told(failing, name, CASES[name].reason, CASES[name].message)


@pytest.fixture(scope="module")
def running(kubectl: Kubectl) -> Iterator[str]:
    """A pipe that is Ready, with volumes of its own in its stage."""
    kubectl.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "words"}, "data": {"first": "hello", "b": "c"}}
    )
    volumes = [
        {"name": "words", "configMap": {"name": "words", "items": [{"key": "first", "path": "in/word"}]}},
        {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "1024Ki"}},
    ]
    mounts = [
        {"name": "words", "mountPath": "/etc/words", "readOnly": True},
        {"name": "scratch", "mountPath": "/scratch", "readOnly": False},
    ]
    kubectl.apply(light("running", stages=one_stage(volumes=volumes, volumeMounts=mounts)))
    wait_ready(kubectl, "running")
    yield "running"
    kubectl("delete", "lp", "running", "--wait=true", "--timeout=110s")


def test_volumes_of_a_template_are_mounted_and_make_no_drift(kubectl: Kubectl, running: str) -> None:
    (pod,) = kubectl.list("pods", f"languagepipes.io/pipe={running},languagepipes.io/role=stage")
    read = "open('/scratch/a', 'w').write(open('/etc/words/in/word').read()); print(open('/scratch/a').read())"
    assert kubectl("exec", pod["metadata"]["name"], "--", "python", "-c", read).strip() == "hello"
    (deployment,) = kubectl.list("deployments", f"languagepipes.io/pipe={running},languagepipes.io/role=stage")
    name = deployment["metadata"]["name"]
    before = kubectl.get("deployment", name)["metadata"]["generation"]
    kubectl("annotate", "lp", running, "theirs.io/look=again")
    time.sleep(5)
    assert kubectl.get("deployment", name)["metadata"]["generation"] == before


def test_a_stage_that_takes_more_memory_than_its_limit(kubectl: Kubectl, running: str) -> None:
    pod = kubectl.list("pods", f"languagepipes.io/pipe={running},languagepipes.io/role=stage")[0]
    limit = pod["spec"]["containers"][0]["resources"]["limits"]["memory"]
    kubectl.run("exec", pod["metadata"]["name"], "--", "python", "-c", ALLOCATE)
    assert_told(
        kubectl,
        running,
        "OOMKilled",
        rf"stage stage-1: its container needed more than its memory limit of {re.escape(limit)}, and the kernel "
        r"stopped it: raise memory in its template, or use more stages or a shorter spec\.model\.maxContextLength",
        seconds=30,
    )


def test_a_namespace_whose_quota_is_used_up(new_namespace: Callable[[str], Kubectl], images: Images) -> None:
    kubectl = new_namespace("quota")
    fill_claim(kubectl, images)
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": {"limits.memory": "2100Mi"}},
    }
    kubectl.apply(quota)
    kubectl.apply(light("over-quota"))
    assert_told(
        kubectl,
        "over-quota",
        "QuotaExceeded",
        r"stage stage-1: its pod exceeds the namespace's ResourceQuota \(exceeded quota: small, requested: "
        r"limits\.memory=\S+, used: limits\.memory=2Gi, limited: limits\.memory=2100Mi\): raise the quota, or use "
        r"fewer replicas, fewer stages, or fewer resources in their templates",
    )
    kubectl("delete", "lp", "over-quota", "--wait=true", "--timeout=110s")


def test_a_pod_that_a_policy_changes_below_the_namespaces_security_level(
    admin: Kubectl, new_namespace: Callable[[str], Kubectl], images: Images
) -> None:
    """Our pods meet the level; in some clusters a mutating webhook or policy then adds to them."""
    kubectl = new_namespace("security")
    fill_claim(kubectl, images)
    name = "adds-host-network"
    admin.apply(*mutating_policy(name, namespace=str(kubectl.namespace)))
    try:
        # A policy is in force some time after it was accepted.
        wait_for("the policy", lambda: "hostNetwork" in refused_dry_run(kubectl))
        kubectl.apply(light("unsafe"))
        assert_told(
            kubectl,
            "unsafe",
            "PodSecurityDenied",
            r"the weights store: its pod is refused by the namespace's Pod Security level \(.*violates PodSecurity "
            r'"restricted:latest": host namespaces \(hostNetwork=true\).*\): the operator creates pods that meet the '
            r"level restricted; find the mutating webhook that changes them",
        )
        kubectl("delete", "lp", "unsafe", "--wait=true", "--timeout=110s")
    finally:
        for kind in ("mutatingadmissionpolicybinding", "mutatingadmissionpolicy"):
            admin("delete", kind, name, "--ignore-not-found")


def mutating_policy(name: str, *, namespace: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pods of pipes in that namespace are moved to their node's network."""
    api = "admissionregistration.k8s.io/v1"
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    return (
        {
            "apiVersion": api,
            "kind": "MutatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "matchConstraints": {
                    "resourceRules": [rule],
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                },
                "failurePolicy": "Fail",
                "reinvocationPolicy": "Never",
                "mutations": [
                    {
                        "patchType": "ApplyConfiguration",
                        "applyConfiguration": {"expression": "Object{spec: Object.spec{hostNetwork: true}}"},
                    }
                ],
            },
        },
        {
            "apiVersion": api,
            "kind": "MutatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name},
        },
    )


def refused_dry_run(kubectl: Kubectl) -> str:
    """What the API server says to a pod that it is only asked about."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "asked"},
        "spec": {"containers": [{"name": "asked", "image": "asked"}]},
    }
    return str(kubectl.run("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod)).stderr)


@pytest.fixture
def hub(our_cluster: Cluster) -> Iterator[StandIn]:
    """A mirror of the Hub as a company has one: reached by TLS from pods, signed by an authority of its own."""
    host = our_cluster.control_plane.address
    leaf = our_cluster.control_plane.authority.issue("hub", common_name="hub", hosts=(host,))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(leaf.certificate, leaf.key)
    with stand_in_hub(host, tls=tls) as hub:
        hub.add("owner/model", "0" * 40, {"config.json": b"{}"}, gated=True)
        yield hub


def test_a_token_that_the_hub_does_not_know(
    kubectl: Kubectl, operator: Installation, our_cluster: Cluster, hub: StandIn
) -> None:
    authority = our_cluster.control_plane.authority.certificate
    operator.install("--set-string", f"hub.endpoint={hub.endpoint}", "--set-file", f"hub.caBundle={authority}")
    kubectl.apply(secret("hub-token", token="hf_wrong_token"))
    reference = {"name": "hub-token", "key": "token"}
    kubectl.apply(light("wrong-token", model={"source": "hf://owner/model", "tokenSecretRef": reference}))
    try:
        said = assert_told(
            kubectl,
            "wrong-token",
            "TokenRefused",
            r"hf://owner/model at 'main': the Hub refuses the token \(401\): it is wrong, has expired or was revoked; "
            r"put one that works into the Secret of tokenSecretRef",
        )
        assert "hf_wrong_token" not in said
        sent: dict[bool, set[str | None]] = {True: set(), False: set()}
        for _, path, headers in hub.requests:
            lowered = {name.lower(): value for name, value in headers.items()}
            sent["owner/model" in path].add(lowered.get("authorization"))
        assert sent[True] == {"Bearer hf_wrong_token"}
        assert sent[False] <= {None}  # huggingface_hub asks of its own accord for /api/agent-harnesses, without a token
    finally:
        kubectl("delete", "lp", "wrong-token", "--wait=true", "--timeout=110s")
        operator.install()


def test_an_image_that_cannot_be_pulled(kubectl: Kubectl, operator: Installation, smollm2: Kubectl) -> None:
    """Of a pipe made with a wrong image; the one that runs already keeps its own image and every pod. With the image
    corrected the pipe comes up.
    """
    selector = "languagepipes.io/pipe=smollm2"
    wait_ready(smollm2)
    before = {pod["metadata"]["uid"] for pod in smollm2.list("pods", selector)}
    operator.install("--set-string", "nodeImage.tag=absent")
    try:
        kubectl.apply(light("wrong-image"))
        assert_told(
            kubectl,
            "wrong-image",
            "ImagePullBackOff",
            r"the weights store: the image \S+:absent cannot be pulled \(.*\): .*the image.*",
        )
        operator.install()
        wait_ready(kubectl, "wrong-image")
        assert {pod["metadata"]["uid"] for pod in smollm2.list("pods", selector)} == before
    finally:
        kubectl("delete", "lp", "wrong-image", "--wait=true", "--timeout=110s")
        operator.install()


def test_a_stage_in_a_crash_loop_tells_its_termination_message(kubectl: Kubectl, our_cluster: Cluster) -> None:
    """A node that promises a GPU and has none: torch finds none, and the stage says so as it ends."""
    node = kubectl.list("nodes")[0]["metadata"]["name"]
    promise = '{"status": {"capacity": {"nvidia.com/gpu": "1"}, "allocatable": {"nvidia.com/gpu": "1"}}}'
    kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", promise)
    try:
        stages = {"list": [{"name": "gpu", "device": "GPU", "memory": "4Gi", "template": LIGHT}]}
        kubectl.apply(light("false-promise", stages=stages))
        assert_told(
            kubectl,
            "false-promise",
            "CrashLoopBackOff",
            r"stage gpu: its container ended with exit code \d+ \(Error\) repeatedly; "
            r"termination message: .*GPU.*; "
            r"see kubectl logs false-promise-\S+ --previous",
        )
    finally:
        kubectl("delete", "lp", "false-promise", "--wait=true", "--timeout=110s")
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
    kubectl.apply(light("taken"))
    try:
        wait_condition(kubectl, "Ready", "False", name="taken", reason="NameConflict")
        assert_told(
            kubectl,
            "taken",
            "NameConflict",
            r"Service taken does not belong to the pipe, and the pipe needs an object of this name: delete the object "
            r"\(kubectl delete service taken\) or rename it, or give the pipe another name",
        )
        assert kubectl.get("service", "taken")["spec"]["selector"] == {"theirs": "yes"}
        assert "ownerReferences" not in kubectl.get("service", "taken")["metadata"]
    finally:
        kubectl("delete", "lp", "taken", "--wait=true", "--timeout=110s")
        kubectl("delete", "service", "taken")
