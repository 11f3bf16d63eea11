"""What the spec no longer asks for leaves the children, though they were made with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from languagepipes_operator.apply.managed_fields import as_applied
from support.served_namespace import Object, ServedNamespace, eventually, settled

HUB = "hf://tests/tiny"


def _pod_of(served: ServedNamespace, role: str) -> Object:
    return served.child("Deployment", role)["spec"]["template"]["spec"]


def _names(items: list[Object]) -> set[str]:
    return {item["name"] for item in items}


def _volume(served: ServedNamespace, name: str) -> Object:
    return next(item for item in _pod_of(served, "store")["volumes"] if item["name"] == name)


def _store_pods_with_token(served: ServedNamespace) -> list[bool]:
    pods = served.list("Pod", labels="languagepipes.io/role=store")
    return ["token" in _names(pod["spec"]["volumes"]) for pod in pods]


def test_fields_that_the_spec_drops_leave_every_child(served: ServedNamespace, tiny_llama: Path) -> None:
    operator = served.started()
    served.api.create(
        f"/api/v1/namespaces/{served.namespace}/secrets",
        {"metadata": {"name": "keys"}, "stringData": {"one": "k", "token": "t"}},
    )
    model: dict[str, Any] = {"source": HUB, "dtype": "float32", "maxContextLength": 128}
    server = {"apiKeysSecretRef": {"name": "keys"}}
    stages = {"count": 2, "template": {"nodeSelector": {"kubernetes.io/os": "linux"}}}
    token = {"tokenSecretRef": {"name": "keys", "key": "token"}}
    served.apply_pipe(model={**model, **token}, server=server, stages=stages)
    eventually(lambda: "token" in _names(_pod_of(served, "store")["volumes"]), what="the token is mounted")
    # A store that no member loads from yet is changed in place.
    served.apply_pipe(model=model, server=server, stages=stages)
    eventually(lambda: "token" not in _names(_pod_of(served, "store")["volumes"]), what="no token")
    eventually(lambda: _store_pods_with_token(served) == [False], what="the pod without a token alone")
    served.play_store(tiny_llama)
    eventually(lambda: len(served.list("Deployment")) == 4)
    assert _pod_of(served, "stage")["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert "keys" in _names(_pod_of(served, "end-model")["volumes"])
    assert "emptyDir" in _volume(served, "cache")
    settled(operator)

    served.apply_pipe(model=model, cache={"size": "1Gi"})
    eventually(lambda: "persistentVolumeClaim" in _volume(served, "cache"), what="the cache's claim is mounted")
    eventually(lambda: "nodeSelector" not in _pod_of(served, "stage"), what="no node selector")
    eventually(lambda: "keys" not in _names(_pod_of(served, "end-model")["volumes"]), what="no keys")
    assert "emptyDir" not in _volume(served, "cache")
    settled(operator)
    assert served.condition("Ready")["reason"] != "ChildRefused"

    served.apply_pipe(model=model)
    eventually(lambda: "emptyDir" in _volume(served, "cache"), what="the cache is the pod's own again")
    assert "persistentVolumeClaim" not in _volume(served, "cache")
    settled(operator)
    before, versions = operator.writes(), served.versions()
    settled(operator, seconds=5)
    assert (operator.writes(), served.versions()) == (before, versions)


def _entry(manager: str, operation: str, fields: Object, **more: str) -> Object:
    return {"manager": manager, "operation": operation, "apiVersion": "v1", "fieldsV1": fields, **more}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], None),
        ([_entry("us", "Apply", {"f:a": {}}), _entry("kubectl", "Update", {"f:b": {}})], None),
        ([_entry("us", "Update", {"f:status": {}}, subresource="status")], None),
        ([_entry("us", "Update", {"f:a": {}})], [_entry("us", "Apply", {"f:a": {}})]),
        (
            [
                _entry("kubectl", "Update", {"f:z": {}}),
                _entry("us", "Update", {"f:a": {"f:x": {}, ".": {}}, "f:b": {}}),
                _entry("us", "Apply", {"f:a": {"f:y": {}}, "f:c": {}}),
            ],
            [
                _entry("us", "Apply", {"f:a": {"f:y": {}, "f:x": {}, ".": {}}, "f:b": {}, "f:c": {}}),
                _entry("kubectl", "Update", {"f:z": {}}),
            ],
        ),
    ],
)
def test_what_was_created_counts_as_applied(entries: list[Object], expected: list[Object] | None) -> None:
    assert as_applied(entries, "us") == expected
