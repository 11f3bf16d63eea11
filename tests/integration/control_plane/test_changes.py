"""A changed spec converges: replicas, another split, a pause."""

from __future__ import annotations

from pathlib import Path

from support.served_namespace import ServedNamespace, eventually, settled


def test_replicas_splits_and_pauses_are_followed(served: ServedNamespace, tiny_llama: Path) -> None:
    operator = served.started()
    served.apply_pipe()
    served.play_store(tiny_llama)
    eventually(lambda: len(served.list("Deployment")) == 4)
    plan = served.child("ConfigMap", "plan")["metadata"]["name"]

    served.apply_pipe(replicas=2)
    eventually(lambda: len(served.list("Deployment")) == 7, what="a second replica")
    eventually(lambda: len(served.list("Secret")) == 8, what="its certificates")
    served.apply_pipe(replicas=0)
    eventually(lambda: len(served.list("Deployment")) == 1, what="the store alone")
    eventually(lambda: len(served.list("Secret")) == 2, what="its certificate and the CA")
    assert served.child("ConfigMap", "plan")["metadata"]["name"] == plan

    served.apply_pipe(stages={"count": 3}, paused=True)
    eventually(lambda: served.pipe().get("status", {}).get("phase") == "Paused")
    settled(operator)
    assert len(served.list("Deployment")) == 1
    assert (served.condition("Ready")["status"], served.condition("Ready")["reason"]) == ("False", "Paused")
    assert "a new plan is made" in served.condition("Ready")["message"]
    served.apply_pipe(stages={"count": 3})
    eventually(lambda: len(served.list("Deployment")) == 5, what="three stages, the End Model and the store")
    eventually(lambda: served.child("ConfigMap", "plan")["metadata"]["name"] != plan)
    eventually(lambda: len(served.list("ConfigMap")) == 1, what="the old plan's ConfigMap is gone")


def test_a_spec_without_a_plan_is_scaled_and_repaired_with_the_plan_that_runs(
    served: ServedNamespace, tiny_llama: Path
) -> None:
    operator = served.started()
    served.apply_pipe()
    served.play_store(tiny_llama)
    eventually(lambda: len(served.list("Deployment")) == 4)
    plan = served.child("ConfigMap", "plan")["metadata"]["name"]
    refused = {"stages": {"count": 60}}

    served.apply_pipe(**refused, replicas=2)
    eventually(lambda: served.condition("Planned")["status"] == "False", what="more stages than layers are refused")
    eventually(lambda: len(served.list("Deployment")) == 7, what="a second replica of the plan that runs")
    name = served.child("Deployment", "end-model")["metadata"]["name"]
    served.api.delete(served.path("Deployment", name))
    eventually(lambda: served.get("Deployment", name), what="a member is made again")
    served.apply_pipe(**refused, replicas=0)
    eventually(lambda: len(served.list("Deployment")) == 1, what="the store alone")
    settled(operator)

    assert served.child("ConfigMap", "plan")["metadata"]["name"] == plan
    assert served.condition("Planned")["reason"] != "Planned"
