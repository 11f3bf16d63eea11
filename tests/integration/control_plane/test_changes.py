"""A changed spec converges: replicas, another split, a pause."""

from __future__ import annotations

from pathlib import Path

from support.operator_world import World, eventually, settled


def test_replicas_splits_and_pauses_are_followed(world: World, tiny_llama: Path) -> None:
    operator = world.started()
    world.apply_pipe()
    world.play_store(tiny_llama)
    eventually(lambda: len(world.list("Deployment")) == 4)
    plan = world.child("ConfigMap", "plan")["metadata"]["name"]

    world.apply_pipe(replicas=2)
    eventually(lambda: len(world.list("Deployment")) == 7, what="a second replica")
    eventually(lambda: len(world.list("Secret")) == 8, what="its certificates")
    world.apply_pipe(replicas=0)
    eventually(lambda: len(world.list("Deployment")) == 1, what="the store alone")
    eventually(lambda: len(world.list("Secret")) == 2, what="its certificate and the CA")
    assert world.child("ConfigMap", "plan")["metadata"]["name"] == plan

    world.apply_pipe(stages={"count": 3}, paused=True)
    eventually(lambda: "Paused" in str(world.pipe()["status"]["conditions"]))
    settled(operator)
    assert len(world.list("Deployment")) == 1
    world.apply_pipe(stages={"count": 3})
    eventually(lambda: len(world.list("Deployment")) == 5, what="three stages, the End Model and the store")
    eventually(lambda: world.child("ConfigMap", "plan")["metadata"]["name"] != plan)
    eventually(lambda: len(world.list("ConfigMap")) == 1, what="the old plan's ConfigMap is gone")
