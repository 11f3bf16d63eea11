"""A change of the model makes a weights store beside the one that members load from, and takes nothing from them."""

from __future__ import annotations

from pathlib import Path

from support.served_namespace import Object, ServedNamespace, completed, eventually, replicas

FIRST, FURTHER = "store", "weights-store"


def stores(served: ServedNamespace) -> dict[str, set[str]]:
    """By role, the kinds of objects that each store has."""
    found: dict[str, set[str]] = {}
    for each in served.children("Deployment", "Service", "NetworkPolicy"):
        role = each["metadata"]["labels"]["languagepipes.io/role"]
        if role in (FIRST, FURTHER):
            found.setdefault(role, set()).add(each["kind"])
    return found


def store_of(deployment: Object) -> str:
    """The name of the Service that a member loads from."""
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    settings = {each["name"]: each["value"] for each in container["env"]}
    return str(settings["LANGUAGEPIPES_STORE_ADDRESS"]).partition(".")[0]


def model(**fields: object) -> Object:
    return {"model": {"source": "hf://tests/tiny", "dtype": "float32", "maxContextLength": 128, **fields}}


ALL = {"Deployment", "Service", "NetworkPolicy"}


def test_a_wrong_source_disarms_nothing_and_a_good_one_moves_to_its_own_store(
    served: ServedNamespace, tiny_llama: Path, tmp_path: Path
) -> None:
    served.started()
    served.apply_pipe()
    served.play_store(tiny_llama)
    first = completed(served)
    old = replicas(served)
    old_store = served.child("Deployment", FIRST)["metadata"]
    assert stores(served) == {FIRST: ALL}

    # A wrong source: its store says so, at the new generation.
    served.apply_pipe(**model(source="hf://tests/wrong"))
    eventually(lambda: stores(served) == {FIRST: ALL, FURTHER: ALL}, what="a store beside the first")
    served.play_store(tmp_path / "none", role=FURTHER)

    def told() -> bool:
        condition = served.condition("WeightsAvailable")
        generation = served.pipe()["metadata"]["generation"]
        return (condition["reason"], condition["observedGeneration"]) == ("FileNotFoundAtSource", generation)

    eventually(told, what=lambda: f"the wrong source is told; it is {served.condition('WeightsAvailable')}")
    status = served.pipe()["status"]
    assert served.condition("EndpointReady")["status"] == "True"
    assert served.condition("Planned")["reason"] == "FileNotFoundAtSource"
    assert status["resolvedRevision"] == first["resolvedRevision"]
    assert replicas(served) == old

    # A stage that goes comes back, and loads from the store that it had.
    lost = served.child("Deployment", "stage")["metadata"]
    served.api.delete(served.path("Deployment", lost["name"]))

    def back() -> Object | None:
        again = served.get("Deployment", lost["name"])
        return again if again["metadata"]["uid"] != lost["uid"] else None

    again = eventually(back, what="the stage is back")
    assert isinstance(again, dict)
    assert store_of(again) == old_store["name"]

    # The old spec undoes it all.
    served.apply_pipe()
    eventually(lambda: stores(served) == {FIRST: ALL}, what="the store that nobody needs is gone")
    undone = completed(served)
    old = replicas(served)
    assert old.keys() == {"0"}
    assert served.child("Deployment", FIRST)["metadata"]["uid"] == old_store["uid"]
    assert undone["currentRevision"] == first["currentRevision"]
    assert [each["outcome"] for each in undone["history"]] == ["Complete"]

    # A good one: its replica loads from its own store, and the old store goes with the old replica.
    served.apply_pipe(**model(revision="next"))
    eventually(lambda: stores(served) == {FIRST: ALL, FURTHER: ALL}, what="a store beside the first")
    served.play_store(tiny_llama, role=FURTHER)
    last = completed(served)
    eventually(lambda: stores(served) == {FURTHER: ALL}, what="the old store is gone")
    assert replicas(served).keys() == {"1"}
    assert store_of(served.child("Deployment", "end-model")) == served.child("Service", FURTHER)["metadata"]["name"]
    newest, before = last["history"]
    assert newest["changes"] == ["model.revision: unset -> next"]
    assert (newest["revision"], newest["outcome"], before["outcome"]) == (last["currentRevision"], *["Complete"] * 2)
    assert newest["generation"] == last["observedGeneration"]
    assert "spec" not in before
