"""A pipe gets its children: the store's at once, all others when the store has told the model's facts."""

from __future__ import annotations

from pathlib import Path

from support.operator_world import World, eventually


def test_a_new_pipe_gets_its_store_at_once(world: World) -> None:
    world.started()
    world.apply_pipe()
    eventually(lambda: world.child("Deployment", "store"))
    eventually(lambda: world.child("Service", "store"))
    assert world.child("Secret", "store")
    assert eventually(lambda: world.condition("Ready"))["status"] == "False"


def test_all_children_follow_from_the_facts_of_a_real_store(world: World, tiny_llama: Path) -> None:
    world.started()
    world.apply_pipe()
    world.play_store(tiny_llama)
    deployments = eventually(lambda: len(world.list("Deployment")) == 4 and world.list("Deployment"))
    roles = sorted(item["metadata"]["labels"]["languagepipes.io/role"] for item in deployments)
    assert roles == ["end-model", "stage", "stage", "store"]
    assert eventually(lambda: world.condition("Planned"))["status"] == "True"
