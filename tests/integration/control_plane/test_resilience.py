"""Operators come and go, and so does the API server; pipes do not notice."""

from __future__ import annotations

import copy
import signal
import time
from pathlib import Path

import yaml
from cluster import ControlPlane
from languagepipes_operator.kube.leader_election import Timing
from support.paths import CRD
from support.served_namespace import ServedNamespace, eventually, install_crd, settled

LEADER = "languagepipes_operator_leader"
LEASE_SECONDS = Timing().lease


def test_a_restarted_operator_writes_nothing(served: ServedNamespace, tiny_llama: Path) -> None:
    first = served.started()
    served.apply_pipe()
    served.play_store(tiny_llama)
    eventually(lambda: len(served.list("Deployment")) == 4)
    settled(first)
    versions, pipe = served.versions(), served.pipe()
    assert first.stop() == 0

    second = served.started("second")
    eventually(lambda: second.metric("languagepipes_operator_reconciles_total") > 0)
    settled(second)
    assert second.writes() == 0
    assert served.versions() == versions
    assert served.pipe() == pipe


def test_a_standby_takes_over_at_once_from_a_stop_and_within_a_lease_from_a_crash(served: ServedNamespace) -> None:
    first = served.started("first")
    second, third = served.start_operator("second"), served.start_operator("third")
    for standby in (second, third):
        eventually(standby.ready)
        assert standby.metric(LEADER) == 0

    began = time.monotonic()
    first.stop()
    eventually(lambda: second.metric(LEADER) + third.metric(LEADER) == 1)
    assert time.monotonic() - began < LEASE_SECONDS  # the process's own end included

    leader, standby = (second, third) if second.metric(LEADER) else (third, second)
    assert standby.writes() <= 1  # at most the Lease itself
    leader.stop(signal.SIGKILL)
    eventually(lambda: standby.metric(LEADER) == 1)
    served.apply_pipe()
    eventually(lambda: served.child("Deployment", "store"))


def test_an_operator_that_is_told_to_end_leaves_a_lease_without_a_holder(served: ServedNamespace) -> None:
    first = served.started("first")
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{served.namespace}/leases/languagepipes-operator"
    assert served.api.get(lease)["spec"]["holderIdentity"] == "first"

    assert first.stop() == 0

    assert served.api.get(lease)["spec"].get("holderIdentity", "") == ""
    assert "the lease is given back" in first.said


def test_an_api_server_that_was_away_finds_everything_going_on(served: ServedNamespace) -> None:
    operator = served.started()
    served.apply_pipe()
    eventually(lambda: served.condition("Ready")["status"])
    settled(operator)
    served.control_plane.stop_api_server()
    time.sleep(17)  # longer than the lease
    assert operator.metric(LEADER) == 0
    assert operator.get("/healthz").status_code == 200
    served.control_plane.start_api_server()
    name = served.child("Service", "store")["metadata"]["name"]
    served.api.delete(served.path("Service", name))
    eventually(lambda: served.get("Service", name), what="the Service is made again")
    served.apply_pipe("another")
    eventually(lambda: served.child("Deployment", "store", "another"))
    assert operator.process.poll() is None


def test_under_an_older_crd_nothing_is_written_and_the_reason_is_told(
    served: ServedNamespace, control_plane: ControlPlane
) -> None:
    older = yaml.safe_load(CRD.read_text())
    newer = copy.deepcopy(older)
    spec = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["properties"]["cache"], spec["properties"]["paused"]
    rules = spec["x-kubernetes-validations"]
    spec["x-kubernetes-validations"] = [rule for rule in rules if "self.cache" not in rule["rule"]]
    try:
        install_crd(control_plane, older)
        served.apply_pipe()
        operator = served.start_operator()
        eventually(lambda: "spec.cache" in operator.get("/readyz").text)
        assert "spec.paused" in operator.said
        assert operator.get("/readyz").status_code == 503
        assert served.children() == []
    finally:
        install_crd(control_plane, newer)
    eventually(lambda: served.child("Deployment", "store"))


def test_deleting_a_pipe_leaves_nothing_and_no_pipe_touches_another(served: ServedNamespace, tiny_llama: Path) -> None:
    operator = served.started()
    served.apply_pipe("a")
    served.apply_pipe("a-b")
    for name in ("a", "a-b"):
        served.play_store(tiny_llama, name)
    eventually(lambda: len(served.list("Deployment")) == 8)
    settled(operator)
    other = {name: version for name, version in served.versions().items() if _pipe(served, name) == "a-b"}
    served.api.delete(served.path("LanguagePipe", "a"))
    eventually(lambda: len(served.list("Deployment")) == 4)
    eventually(lambda: not served.api.get(served.path("Pod"), labelSelector="languagepipes.io/pipe=a")["items"])
    eventually(lambda: set(served.versions()) == set(other), what="nothing of a is left")
    settled(operator)
    assert set(served.versions()) == set(other)


def _pipe(served: ServedNamespace, title: str) -> str:
    kind, name = title.split("/")
    return str(served.get(kind, name)["metadata"]["labels"]["languagepipes.io/pipe"])
