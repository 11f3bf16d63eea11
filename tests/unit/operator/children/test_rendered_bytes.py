"""What is rendered for a pipe is the same in every version of the operator, byte for byte: another manifest of a
Deployment, another hash of its inputs or another name replaces pods that run.

A line that differs is a change that clusters see. The first group of digits is the hash of the inputs, which an upgrade
must not change; the second is the manifest's. Changing only the second affects new Deployments and other children.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from languagepipes_operator.decide.last_applied import unpack
from languagepipes_operator.digest import digest
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.names import ANNOTATION_INPUTS, ANNOTATION_RENDERED
from support.example_pipes import of_kind, pipe_snapshot, rendered

TEMPLATE = {
    "resources": {"limits": {"memory": "64Gi"}, "requests": {"cpu": "1500m"}},
    "nodeSelector": {"pool": "models"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "priorityClassName": "high",
    "imagePullSecrets": [{"name": "registry"}],
}
PIPES: dict[str, dict[str, Any]] = {
    "small": {"stages": {"count": 2}},
    "listed": {
        "stages": {
            "list": [
                {
                    "name": "gpu",
                    "layers": 10,
                    "device": "GPU",
                    "template": {"resources": {"limits": {"nvidia.com/gpu": 1}}, "runtimeClassName": "nvidia"},
                },
                {"name": "cpu", "template": TEMPLATE},
            ]
        },
        "endModel": {"localLayers": 2, "tailLayers": 1, "template": TEMPLATE},
        "server": {"apiKeysSecretRef": {"name": "keys"}, "maxConcurrentRequests": 8},
        "model": {"servedName": "other", "tokenSecretRef": {"name": "hf", "key": "token"}, "maxContextLength": 2048},
        "cache": {"size": "4.5Gi", "storageClassName": "fast"},
    },
    "replicated": {
        "source": "pvc://weights/qwen3",
        "stages": {"count": 1},
        "replicas": 2,
        "networkPolicy": {"enabled": False},
    },
}
EXPECTED: dict[str, list[str]] = {
    "small": [
        "Service/small-store-c7dc3b84 - 8358e3c72dd86382",
        "Service/small - 105483a90f87f761",
        "NetworkPolicy/small-store-c7dc3b84 - 984ffb6c925f4a41",
        "Deployment/small-store-c7dc3b84 b2d0cf7bc7f31243 a5d24c8221b3ae51",
        "PodDisruptionBudget/small-0-stages-f7d1ac72 - e5a1858cb47205db",
        "PodDisruptionBudget/small-0-end-model-61300312 - 51a8c2753f69f80b",
        "ConfigMap/small-plan-996d0a2d 0123456789abcdef 09332bfbed2e87b9",
        "Service/small-ring-3f8219d8 - 22174194d09ec46a",
        "NetworkPolicy/small-end-model-524a3e0c - de62331592eadb31",
        "NetworkPolicy/small-stage-1-9e4fb3a6 - ec1826437695eb9e",
        "NetworkPolicy/small-stage-2-9a887e47 - d1fd2ec1584f9d44",
        "Deployment/small-0-stage-1-df455dbb 8285dec5f2b11bf9 ca25b0dc22c1b103",
        "Deployment/small-0-stage-2-4f13f00b 20d6d23a852b3f31 45afd2381544b1e4",
        "Deployment/small-0-end-model-fe882cc7 35316911a649f99d 6579257278b216de",
    ],
    "listed": [
        "Service/listed-store-54285101 - 29377f3f27adfe6a",
        "Service/listed - b4d2787bdcf7e347",
        "PersistentVolumeClaim/listed-cache-0b331214 - 4c23f33839f5b638",
        "NetworkPolicy/listed-store-54285101 - 089619b5efe80ced",
        "Deployment/listed-store-54285101 6a9714a77b0c13be cdaa365879212dce",
        "PodDisruptionBudget/listed-0-stages-a8fb94af - 6c8beb606a018e1b",
        "PodDisruptionBudget/listed-0-end-model-18bb01c4 - 1369b45e4f90b56f",
        "ConfigMap/listed-plan-e296bbee 0123456789abcdef c4f8500cdf2edc55",
        "Service/listed-ring-5840941e - d9ca451100dd8724",
        "NetworkPolicy/listed-end-model-1f08e43e - 43666d98fe176749",
        "NetworkPolicy/listed-stage-1-db1e6d7d - eb40c1db60cf6b03",
        "NetworkPolicy/listed-stage-2-012c30e6 - 4878f24c4118f271",
        "Deployment/listed-0-stage-1-8c1f200b 85a9fcebeecb118c 0ae48aa48ba8d172",
        "Deployment/listed-0-stage-2-bb993e70 0d44d81290fecb85 68747ac697c05c74",
        "Deployment/listed-0-end-model-b0b96eb5 d5bf42f491506bd1 be822e03d81d3ab1",
    ],
    "replicated": [
        "Service/replicated-store-a167a4df - c8a18fe3ba34faa4",
        "Service/replicated - c6f089835c52dee4",
        "Deployment/replicated-store-a167a4df fbf652b47aebaa5c 23a7006d930d4107",
        "PodDisruptionBudget/replicated-0-stages-74b55e92 - 6e97e71f5f6b14aa",
        "PodDisruptionBudget/replicated-0-end-model-8089f23b - 5eef018208dba86a",
        "PodDisruptionBudget/replicated-1-stages-caf73bd1 - ec1cd1a761bb4369",
        "PodDisruptionBudget/replicated-1-end-model-0eb5d1f2 - 2ca75e2558772c50",
        "ConfigMap/replicated-plan-1ef83b82 0123456789abcdef 29300e7e3bca1f68",
        "Service/replicated-ring-d4954628 - 28c566a5d7fb19af",
        "Deployment/replicated-0-stage-1-0c254c0c 86353432e5cce0ca 0302bd97c1be924b",
        "Deployment/replicated-0-end-model-f7829e7f b179501c8a011233 c8200cd0900f9fd5",
        "Deployment/replicated-1-stage-1-68e3595b fa4706535be9871e 28e48d11f555a038",
        "Deployment/replicated-1-end-model-ca5910df 1d7ac02924fdf6cf 1b5a1115d9497c01",
    ],
}


def lines(children: list[Manifest]) -> list[str]:
    """ "Kind/name inputs manifest" of each; packed manifests are left out, since their bytes depend on zlib."""
    found = []
    for child in children:
        annotations = dict(child["metadata"].get("annotations", {}))
        annotations.pop(ANNOTATION_RENDERED, None)
        plain = {**child, "metadata": {**child["metadata"], "annotations": annotations}}
        name = f"{child['kind']}/{child['metadata']['name']}"
        found.append(f"{name} {annotations.get(ANNOTATION_INPUTS, '-')} {digest(plain)}")
    return found


@pytest.mark.parametrize("name", PIPES)
def test_children_are_rendered_as_in_earlier_versions(name: str) -> None:
    assert lines(rendered(pipe_snapshot(name, **PIPES[name]))) == EXPECTED[name]


@pytest.mark.parametrize("name", PIPES)
def test_a_deployment_carries_itself_as_it_was_rendered(name: str) -> None:
    for deployment in of_kind(rendered(pipe_snapshot(name, **PIPES[name])), "Deployment"):
        metadata = {key: value for key, value in deployment["metadata"].items() if key != "annotations"}
        plain = json.loads(json.dumps({**deployment, "metadata": metadata}))

        assert unpack(deployment["metadata"]["annotations"][ANNOTATION_RENDERED]) == plain


def test_the_same_snapshot_gives_the_same_bytes() -> None:
    first, second = (json.dumps(rendered(pipe_snapshot(cache={"size": "4Gi"}))) for _ in range(2))

    assert first == second
