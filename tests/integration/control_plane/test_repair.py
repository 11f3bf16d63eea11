"""What was asked for is restored; what others added stays; what is somebody else's is never touched."""

from __future__ import annotations

import base64
from pathlib import Path

from support.served_namespace import CHILD_KINDS, Object, ServedNamespace, eventually, settled

CACHE = {"cache": {"size": "1Gi"}}


def _edit(served: ServedNamespace, item: Object) -> tuple[Object, str]:
    """A hand's merge patch that spoils a child, and the dotted field that must come back."""
    kind = item["kind"]
    spoilt: dict[str, tuple[Object, str]] = {
        "Deployment": ({"spec": {"replicas": 3}}, "spec.replicas"),
        "Service": ({"spec": {"selector": {"app": "another"}}}, "spec.selector"),
        "Secret": ({"data": {"ca.crt": base64.b64encode(b"nonsense").decode()}}, ""),
        "ConfigMap": ({"metadata": {"labels": {"languagepipes.io/role": "none"}}}, "metadata.labels"),
        "PersistentVolumeClaim": ({"metadata": {"labels": {"languagepipes.io/role": "none"}}}, "metadata.labels"),
        "PodDisruptionBudget": ({"spec": {"maxUnavailable": 0}}, "spec.maxUnavailable"),
        "NetworkPolicy": ({"spec": {"ingress": [{}]}}, "spec.ingress"),
    }
    return spoilt[kind]


def _field(item: Object, path: str) -> object:
    value: object = item
    for part in path.split("."):
        assert isinstance(value, dict)
        value = value[part]
    return value


def test_every_kind_of_child_is_repaired_and_an_idle_pipe_costs_no_write(
    served: ServedNamespace, tiny_llama: Path
) -> None:
    operator = served.started()
    served.apply_pipe(**CACHE)
    served.play_store(tiny_llama)
    eventually(lambda: len(served.list("Deployment")) == 4 and len(served.list("NetworkPolicy")) >= 4)
    assert {item["kind"] for item in served.children()} == set(CHILD_KINDS)

    settled(operator)
    before, versions = operator.writes(), served.versions()
    for kind in CHILD_KINDS:
        item = served.list(kind)[0]
        name = item["metadata"]["name"]
        patch, field = _edit(served, item)
        served.api.merge(served.path(kind, name), patch)
        if field:
            eventually(
                lambda: _field(served.get(kind, name), field) == _field(item, field),  # noqa: B023
                what=f"{kind} {field} is restored",
            )
        else:
            eventually(lambda: served.get(kind, name)["data"] != patch["data"], what=f"{kind} is restored")  # noqa: B023
    assert operator.writes() > before

    for kind in CHILD_KINDS:
        if kind == "PersistentVolumeClaim":
            continue  # a pod holds it: it stays, ending, until the pod goes
        item = served.list(kind)[-1]
        served.api.delete(served.path(kind, item["metadata"]["name"]))
        eventually(
            lambda: served.get(kind, item["metadata"]["name"])["metadata"]["uid"] != item["metadata"]["uid"],  # noqa: B023
            what=f"{kind} is made again",
        )
    assert set(served.versions()) == set(versions)

    # Additions by others stay.
    service = served.child("Service", "api")["metadata"]["name"]
    served.api.merge(served.path("Service", service), {"metadata": {"annotations": {"others/note": "mine"}}})
    settled(operator)
    assert served.get("Service", service)["metadata"]["annotations"]["others/note"] == "mine"

    # Idle.
    before, versions = operator.writes(), served.versions()
    settled(operator, seconds=8)
    assert (operator.writes(), served.versions()) == (before, versions)


def test_an_object_of_somebody_else_is_never_touched(served: ServedNamespace) -> None:
    operator = served.started()
    theirs = {"metadata": {"name": "pipe"}, "spec": {"ports": [{"port": 1}]}}
    served.api.create(served.path("Service"), theirs)
    before = served.get("Service", "pipe")
    served.apply_pipe()
    eventually(lambda: "NameConflict" in str(served.pipe().get("status")), what="NameConflict is told")
    served.api.delete(served.path("LanguagePipe", "pipe"))
    settled(operator)
    assert served.get("Service", "pipe")["metadata"] == before["metadata"]


def test_children_of_an_earlier_pipe_of_the_same_name_are_waited_for(served: ServedNamespace) -> None:
    served.started()
    old = {
        "apiVersion": "languagepipes.io/v1alpha1",
        "kind": "LanguagePipe",
        "name": "pipe",
        "uid": "00000000-0000-0000-0000-000000000000",
        "controller": True,
    }
    labels = {"app.kubernetes.io/managed-by": "languagepipes", "languagepipes.io/pipe": "pipe"}
    # A finalizer holds it, as a slow deletion would; the garbage collector wants it gone.
    metadata = {"name": "pipe", "labels": labels, "ownerReferences": [old], "finalizers": ["tests.io/held"]}
    served.api.create(served.path("Service"), {"metadata": metadata, "spec": {"ports": [{"port": 1}]}})
    served.apply_pipe()
    eventually(lambda: "WaitingForDeletion" in str(served.pipe().get("status")))
    served.api.merge(served.path("Service", "pipe"), {"metadata": {"finalizers": None}})
    eventually(lambda: served.get("Service", "pipe")["spec"]["ports"][0]["port"] == 80)
