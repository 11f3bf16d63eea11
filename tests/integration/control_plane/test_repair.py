"""What was asked for is restored; what others added stays; what is somebody else's is never touched."""

from __future__ import annotations

import base64
from pathlib import Path

from support.operator_world import CHILD_KINDS, Object, World, eventually, settled

CACHE = {"cache": {"size": "1Gi"}}


def _edit(world: World, item: Object) -> tuple[Object, str]:
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


def test_every_kind_of_child_is_repaired_and_an_idle_pipe_costs_no_write(world: World, tiny_llama: Path) -> None:
    operator = world.started()
    world.apply_pipe(**CACHE)
    world.play_store(tiny_llama)
    eventually(lambda: len(world.list("Deployment")) == 4 and len(world.list("NetworkPolicy")) >= 4)
    assert {item["kind"] for item in world.children()} == set(CHILD_KINDS)

    settled(operator)
    before, versions = operator.writes(), world.versions()
    for kind in CHILD_KINDS:
        item = world.list(kind)[0]
        name = item["metadata"]["name"]
        patch, field = _edit(world, item)
        world.api.merge(world.path(kind, name), patch)
        if field:
            eventually(
                lambda: _field(world.get(kind, name), field) == _field(item, field),  # noqa: B023
                what=f"{kind} {field} is restored",
            )
        else:
            eventually(lambda: world.get(kind, name)["data"] != patch["data"], what=f"{kind} is restored")  # noqa: B023
    assert operator.writes() > before

    for kind in CHILD_KINDS:
        if kind == "PersistentVolumeClaim":
            continue  # a pod holds it: it stays, ending, until the pod goes
        item = world.list(kind)[-1]
        world.api.delete(world.path(kind, item["metadata"]["name"]))
        eventually(
            lambda: world.get(kind, item["metadata"]["name"])["metadata"]["uid"] != item["metadata"]["uid"],  # noqa: B023
            what=f"{kind} is made again",
        )
    assert set(world.versions()) == set(versions)

    # Additions by others stay.
    service = world.child("Service", "api")["metadata"]["name"]
    world.api.merge(world.path("Service", service), {"metadata": {"annotations": {"others/note": "mine"}}})
    settled(operator)
    assert world.get("Service", service)["metadata"]["annotations"]["others/note"] == "mine"

    # Idle.
    before, versions = operator.writes(), world.versions()
    settled(operator, seconds=8)
    assert (operator.writes(), world.versions()) == (before, versions)


def test_an_object_of_somebody_else_is_never_touched(world: World) -> None:
    operator = world.started()
    theirs = {"metadata": {"name": "pipe"}, "spec": {"ports": [{"port": 1}]}}
    world.api.create(world.path("Service"), theirs)
    before = world.get("Service", "pipe")
    world.apply_pipe()
    eventually(lambda: "NameConflict" in str(world.pipe()["status"]["conditions"]), what="NameConflict is told")
    world.api.delete(world.path("LanguagePipe", "pipe"))
    settled(operator)
    assert world.get("Service", "pipe")["metadata"] == before["metadata"]


def test_children_of_an_earlier_pipe_of_the_same_name_are_waited_for(world: World) -> None:
    world.started()
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
    world.api.create(world.path("Service"), {"metadata": metadata, "spec": {"ports": [{"port": 1}]}})
    world.apply_pipe()
    eventually(lambda: "WaitingForDeletion" in str(world.pipe()["status"]["conditions"]))
    world.api.merge(world.path("Service", "pipe"), {"metadata": {"finalizers": None}})
    eventually(lambda: world.get("Service", "pipe")["spec"]["ports"][0]["port"] == 80, seconds=60)
