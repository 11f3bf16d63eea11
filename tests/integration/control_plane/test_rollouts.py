"""What runs is replaced by what was admitted beside it, and by nothing else."""

from __future__ import annotations

from pathlib import Path

from support.served_namespace import Object, ServedNamespace, completed, eventually, replicas


def test_a_changed_setting_is_rolled_out_beside_what_runs_and_undone_where_it_never_runs(
    served: ServedNamespace, tiny_llama: Path
) -> None:
    served.started()
    served.apply_pipe()
    served.play_store(tiny_llama)
    first = completed(served)
    before, secrets = replicas(served), len(served.list("Secret"))
    assert before.keys() == {"0"}
    assert first["currentRevision"] == first["updatedRevision"]

    server: Object = {"server": {"maxQueuedRequests": 9}}
    served.apply_pipe(**server)
    eventually(lambda: replicas(served).keys() == {"0", "1"}, what="a replica beside the old one")
    assert replicas(served)["0"] == before["0"]
    second = completed(served)
    assert replicas(served).keys() == {"1"}
    assert second["currentRevision"] == second["updatedRevision"] != first["currentRevision"]
    eventually(lambda: len(served.list("Secret")) == secrets, what="the old replica's certificates are gone")
    assert len(served.list("ConfigMap")) == 1

    running = replicas(served)
    nowhere = {"count": 3, "template": {"nodeSelector": {"no.such/label": "x"}}}
    served.apply_pipe(**server, stages=nowhere, rollout={"progressDeadlineSeconds": 10})
    eventually(
        lambda: served.condition("Progressing")["reason"] == "ProgressDeadlineExceeded", what="the deadline is told"
    )
    told = served.condition("Progressing")
    assert told["status"] == "False"
    assert "no.such/label" in told["message"]
    assert replicas(served)["1"] == running["1"]
    assert len(served.list("ConfigMap")) == 2

    served.apply_pipe(**server)
    third = completed(served)
    assert replicas(served) == running
    assert third["currentRevision"] == second["currentRevision"]
    eventually(lambda: len(served.list("ConfigMap")) == 1, what="the plan that never ran is gone")


def test_a_quota_that_admits_the_old_replica_alone_takes_nothing_away(
    served: ServedNamespace, tiny_llama: Path
) -> None:
    served.started()
    served.apply_pipe()
    served.play_store(tiny_llama)
    completed(served)
    running = replicas(served)
    quotas = f"/api/v1/namespaces/{served.namespace}/resourcequotas"
    served.api.create(quotas, {"metadata": {"name": "pods"}, "spec": {"hard": {"pods": "4"}}})

    served.apply_pipe(stages={"count": 3})

    def told() -> bool:
        return served.condition("Ready")["reason"] == "QuotaExceeded"

    eventually(told, what="the quota is told of")
    assert replicas(served)["0"] == running["0"]
    assert served.condition("EndpointReady")["status"] == "True"
    # Where there is no room beside it, it is stopped first if that is asked for.
    served.apply_pipe(server={"maxQueuedRequests": 9}, rollout={"maxSurge": 0, "maxUnavailable": 1})
    status = completed(served)
    assert (status["readyReplicas"], len(served.list("Pod"))) == (1, 4)
