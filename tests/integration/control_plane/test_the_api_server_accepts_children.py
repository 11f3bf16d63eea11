"""A real API server, strict and enforcing the restricted profile, takes every child without a warning and unchanged."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

import pytest
from cluster import ControlPlane, programs
from languagepipes_operator.apply.drift import differences
from languagepipes_operator.children.quantities import canonical
from languagepipes_operator.kube.kinds import BY_NAME, Manifest
from support.example_pipes import container_of, of_kind, pipe_snapshot, pod_of, rendered

NAMESPACE = "restricted"
TEMPLATE: dict[str, Any] = {
    "resources": {"requests": {"cpu": "1.5", "memory": "1024Mi"}, "limits": {"memory": "2048Mi"}},
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}]
            }
        }
    },
    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
    "imagePullSecrets": [{"name": "registry"}],
    "labels": {"team": "ml", "example.com/cost-centre": ""},
    "annotations": {"sidecar.istio.io/inject": "false"},
    "env": [
        {"name": "EMPTY", "value": ""},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}},
    ],
    "envFrom": [{"prefix": "TEAM_", "configMapRef": {"name": "team"}}, {"secretRef": {"name": "s"}}],
    "volumes": [
        {"name": "ca", "configMap": {"name": "corporate", "items": [{"key": "ca.crt", "path": "certs/ours.crt"}]}},
        {"name": "key", "secret": {"secretName": "s", "optional": False}},
        {"name": "fast", "emptyDir": {"medium": "Memory", "sizeLimit": "1024Mi"}},
        {"name": "disk", "emptyDir": {}},
        {"name": "data", "persistentVolumeClaim": {"claimName": "c", "readOnly": False}},
        {"name": "vault", "csi": {"driver": "secrets-store.csi.k8s.io", "volumeAttributes": {"a": ""}}},
    ],
    "volumeMounts": [
        {"name": "ca", "mountPath": "/etc/ssl/ours", "readOnly": True},
        {"name": "fast", "mountPath": "/fast", "readOnly": False, "subPath": "a/.b"},
        *({"name": name, "mountPath": f"/mnt/{name}"} for name in ("key", "disk", "data", "vault")),
    ],
    "schedulerName": "volcano",
    "serviceAccountName": "reader",
}
PIPES: dict[str, dict[str, Any]] = {
    "the least": {},
    "the most": {
        "name": "q" * 40,
        "replicas": 2,
        "model": {"tokenSecretRef": {"name": "hf", "key": "token"}, "revision": "v1"},
        "server": {"apiKeysSecretRef": {"name": "keys"}},
        "cache": {"size": "4096Mi", "storageClassName": "fast"},
        "endModel": {"template": TEMPLATE},
        "stages": {"list": [
            {"name": "gpu", "layers": 20, "device": "GPU", "template": TEMPLATE},
            {"name": "cpu", "memory": "3072Mi"},
        ]},
    },
    "a store of its own": {
        "store": {"ephemeralStorage": "1024Mi", "template": {key: TEMPLATE[key] for key in (
            "resources", "nodeSelector", "labels", "annotations", "env", "envFrom", "volumes", "volumeMounts",
            "serviceAccountName")}},
    },
    "a volume": {"source": "pvc://models/qwen3/model.gguf"},
    "a mirror": {"source": "https://models.mirrors.svc:8443/qwen3"},
}  # fmt: skip


@pytest.fixture(scope="module")
def strict(control_plane: ControlPlane) -> ControlPlane:
    """With a namespace that enforces the restricted profile, and what TEMPLATE names."""
    api = control_plane.api
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
    priority = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"}, "value": 7}
    runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "n"}
    api.apply(f"/api/v1/namespaces/{NAMESPACE}", namespace)
    api.apply("/apis/scheduling.k8s.io/v1/priorityclasses/high", priority)
    reader = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader", "namespace": NAMESPACE}}
    api.apply(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/reader", reader)
    api.apply("/apis/node.k8s.io/v1/runtimeclasses/nvidia", runtime)
    deadline = time.monotonic() + 30
    while not api.exists(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"):
        assert time.monotonic() < deadline, "no service account"
        time.sleep(0.1)
    return control_plane


def kubectl(control_plane: ControlPlane, *arguments: str, manifests: list[Manifest]) -> None:
    """Raises CalledProcessError with kubectl's words; a warning of the API server is an error."""
    done = subprocess.run(
        [programs.kubectl(), f"--kubeconfig={control_plane.kubeconfig}", "--warnings-as-errors", *arguments, "-f", "-"],
        input=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def children_of(case: str) -> list[Manifest]:
    return rendered(pipe_snapshot(namespace=NAMESPACE, **PIPES[case]))


@pytest.mark.parametrize("case", PIPES)
def test_a_strict_server_side_dry_run_takes_every_child_without_a_warning(strict: ControlPlane, case: str) -> None:
    kubectl(strict, "apply", "--server-side", "--dry-run=server", "--validate=strict", manifests=children_of(case))


@pytest.mark.parametrize("case", PIPES)
def test_a_namespace_that_enforces_the_restricted_profile_admits_every_pod(strict: ControlPlane, case: str) -> None:
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": deployment["metadata"]["name"],
                "namespace": NAMESPACE,
                "labels": deployment["spec"]["template"]["metadata"]["labels"],
            },
            "spec": pod_of(deployment),
        }
        for deployment in of_kind(children_of(case), "Deployment")
    ]

    kubectl(strict, "create", "--dry-run=server", "--validate=strict", manifests=pods)


@pytest.mark.parametrize("case", PIPES)
def test_what_was_created_reads_back_as_it_was_sent(strict: ControlPlane, case: str) -> None:
    for manifest in children_of(case):
        path = BY_NAME[manifest["kind"]].path(NAMESPACE)

        live = strict.api.create(f"{path}?dryRun=All", manifest)

        assert differences(manifest, live) == [], manifest["metadata"]["name"]
        if manifest["kind"] == "Deployment":
            sent, read = (container_of(item)["resources"] for item in (manifest, live))
            assert sent["limits"].items() <= read["limits"].items()
            assert sent["requests"].items() <= read["requests"].items()
        if manifest["kind"] == "PersistentVolumeClaim":
            assert manifest["spec"]["resources"] == live["spec"]["resources"]


def test_quantities_are_what_the_api_server_makes_of_them(strict: ControlPlane) -> None:
    written = [
        *("1024Mi", "1536Mi", "0.5Gi", "1.0", "0.5", "1000", "1500000", "1000M", "0.1Ki", "1e3", "1.5e3"),
        *("12e6", "0", "1000Ki", "2.5", "1n", "0.1n", "3e-2", "1.5Ki", "1.0001Ki", "100e3", "1023Mi", "10e-1", "1Ei"),
    ]
    containers = [
        {"name": f"c{place}", "image": "pause", "resources": {"requests": {"cpu": amount}}}
        for place, amount in enumerate(written)
    ]
    metadata = {"name": "quantities", "namespace": "default"}
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": containers}}
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}

    live = strict.api.create("/apis/apps/v1/namespaces/default/deployments?dryRun=All", deployment)

    read = [container["resources"]["requests"]["cpu"] for container in pod_of(live)["containers"]]
    assert dict(zip(written, read, strict=True)) == {amount: canonical(amount) for amount in written}
