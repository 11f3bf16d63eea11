"""A pipe gets its children: the store's at once, all others when the store has told the model's facts."""

from __future__ import annotations

from pathlib import Path

from support.served_namespace import ServedNamespace, eventually


def test_a_new_pipe_gets_its_store_at_once(served: ServedNamespace) -> None:
    served.started()
    served.apply_pipe()
    eventually(lambda: served.child("Deployment", "store"))
    eventually(lambda: served.child("Service", "store"))
    assert served.child("Secret", "store")
    eventually(lambda: served.condition("Ready")["status"] == "False", what="not Ready")


def test_all_children_follow_from_the_facts_of_a_real_store(served: ServedNamespace, tiny_llama: Path) -> None:
    served.started()
    served.apply_pipe()
    served.play_store(tiny_llama)
    deployments = eventually(lambda: len(served.list("Deployment")) == 4 and served.list("Deployment"))
    roles = sorted(item["metadata"]["labels"]["languagepipes.io/role"] for item in deployments)
    assert roles == ["end-model", "stage", "stage", "store"]
    eventually(lambda: served.condition("Planned")["status"] == "True", what="Planned")
