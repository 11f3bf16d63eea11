"""Operators come and go, and so does the API server; pipes do not notice."""

from __future__ import annotations

import copy
import signal
import time
from pathlib import Path

import yaml
from cluster import ControlPlane
from support.operator_world import World, eventually, install_crd, settled
from support.paths import CRD

LEADER = "languagepipes_operator_leader"


def test_a_restarted_operator_writes_nothing(world: World, tiny_llama: Path) -> None:
    first = world.started()
    world.apply_pipe()
    world.play_store(tiny_llama)
    eventually(lambda: len(world.list("Deployment")) == 4)
    settled(first)
    versions, pipe = world.versions(), world.pipe()
    assert first.stop() == 0

    second = world.started("second")
    eventually(lambda: second.metric("languagepipes_operator_reconciles_total") > 0)
    settled(second)
    assert second.writes() == 0
    assert world.versions() == versions
    assert world.pipe() == pipe


def test_a_standby_takes_over_at_once_from_a_stop_and_within_a_lease_from_a_crash(world: World) -> None:
    first = world.started("first")
    second, third = world.start_operator("second"), world.start_operator("third")
    for standby in (second, third):
        eventually(standby.ready)
        assert standby.metric(LEADER) == 0

    began = time.monotonic()
    first.stop()
    eventually(lambda: second.metric(LEADER) + third.metric(LEADER) == 1, seconds=5)
    assert time.monotonic() - began < 8  # the process's own end included

    leader, standby = (second, third) if second.metric(LEADER) else (third, second)
    assert standby.writes() <= 1  # at most the Lease itself
    leader.stop(signal.SIGKILL)
    eventually(lambda: standby.metric(LEADER) == 1, seconds=25)
    world.apply_pipe()
    eventually(lambda: world.child("Deployment", "store"))


def test_an_api_server_that_was_away_finds_everything_going_on(world: World) -> None:
    operator = world.started()
    world.apply_pipe()
    eventually(lambda: world.condition("Ready"))
    settled(operator)
    world.control_plane.stop_api_server()
    time.sleep(17)  # longer than the lease
    assert operator.metric(LEADER) == 0
    assert operator.get("/healthz").status_code == 200
    world.control_plane.start_api_server()
    name = world.child("Service", "store")["metadata"]["name"]
    world.api.delete(world.path("Service", name))
    eventually(lambda: world.get("Service", name), seconds=60, what="the Service is made again")
    world.apply_pipe("another")
    eventually(lambda: world.child("Deployment", "store", "another"), seconds=60)
    assert operator.process.poll() is None


def test_under_an_older_crd_nothing_is_written_and_the_reason_is_told(
    world: World, control_plane: ControlPlane
) -> None:
    older = yaml.safe_load(CRD.read_text())
    newer = copy.deepcopy(older)
    spec = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["properties"]["cache"], spec["properties"]["paused"]
    try:
        install_crd(control_plane, older)
        world.apply_pipe()
        operator = world.start_operator()
        eventually(lambda: "spec.cache" in operator.get("/readyz").text)
        assert "spec.paused" in operator.said
        assert operator.get("/readyz").status_code == 503
        assert world.children() == []
    finally:
        install_crd(control_plane, newer)
    eventually(lambda: world.child("Deployment", "store"))


def test_deleting_a_pipe_leaves_nothing_and_no_pipe_touches_another(world: World, tiny_llama: Path) -> None:
    operator = world.started()
    world.apply_pipe("a")
    world.apply_pipe("a-b")
    for name in ("a", "a-b"):
        world.play_store(tiny_llama, name)
    eventually(lambda: len(world.list("Deployment")) == 8)
    settled(operator)
    other = {name: version for name, version in world.versions().items() if _pipe(world, name) == "a-b"}
    world.api.delete(world.path("LanguagePipe", "a"))
    eventually(lambda: len(world.list("Deployment")) == 4, seconds=60)
    eventually(lambda: not world.api.get(world.path("Pod"), labelSelector="languagepipes.io/pipe=a")["items"])
    eventually(lambda: set(world.versions()) == set(other), seconds=60, what="nothing of a is left")
    settled(operator)
    assert set(world.versions()) == set(other)


def _pipe(world: World, title: str) -> str:
    kind, name = title.split("/")
    return str(world.get(kind, name)["metadata"]["labels"]["languagepipes.io/pipe"])
