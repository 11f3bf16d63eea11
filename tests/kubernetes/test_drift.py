"""Children that somebody deletes or edits come back as they were; what others add stays; nothing is left behind."""

from __future__ import annotations

import json
from typing import Any

import pytest
from installation import Installation
from kubectl import Kubectl, wait_for
from serving import Client, pipe, wait_condition, wait_ready

pytestmark = pytest.mark.kubernetes

OF_PIPE = "languagepipes.io/pipe=smollm2"
KINDS = ("deployment", "service", "secret", "configmap", "poddisruptionbudget", "networkpolicy")


def uids(kubectl: Kubectl, kind: str) -> dict[str, str]:
    return {item["metadata"]["name"]: item["metadata"]["uid"] for item in kubectl.list(kind, OF_PIPE)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_deleted_child_comes_back(smollm2: Kubectl, kind: str) -> None:
    before = uids(smollm2, kind)
    assert before
    name = sorted(before)[0]
    smollm2("delete", kind, name, "--wait=true")
    wait_for(
        f"{kind} {name} again", lambda: uids(smollm2, kind).get(name) not in (None, before[name]), timeout_seconds=30
    )
    after = wait_for(
        "all children", lambda: (now := uids(smollm2, kind)).keys() == before.keys() and now, timeout_seconds=30
    )
    assert {other: uid for other, uid in after.items() if other != name} == {
        other: uid for other, uid in before.items() if other != name
    }
    wait_ready(smollm2)


def test_an_edited_deployment_is_put_back_and_what_others_add_stays(smollm2: Kubectl) -> None:
    name = smollm2.list("deployment", f"{OF_PIPE},languagepipes.io/role=stage")[0]["metadata"]["name"]
    smollm2("patch", "deployment", name, "--type=merge", "-p", json.dumps({"metadata": {"labels": {"theirs": "kept"}}}))
    smollm2("scale", "deployment", name, "--replicas=0")
    wait_for(
        "one replica again",
        lambda: smollm2.get("deployment", name)["spec"]["replicas"] == 1,
        timeout_seconds=30,
    )
    assert smollm2.get("deployment", name)["metadata"]["labels"]["theirs"] == "kept"
    wait_ready(smollm2)


def test_an_edited_service_is_put_back(smollm2: Kubectl) -> None:
    patch = [{"op": "replace", "path": "/spec/ports/0/targetPort", "value": 1234}]
    before = smollm2.get("service", "smollm2")["spec"]["ports"]
    smollm2("patch", "service", "smollm2", "--type=json", "-p", json.dumps(patch))
    wait_for("the port again", lambda: smollm2.get("service", "smollm2")["spec"]["ports"] == before, timeout_seconds=30)


def test_a_restarted_operator_restarts_no_pod_and_writes_nothing(smollm2: Kubectl, operator: Installation) -> None:
    def state() -> dict[str, Any]:
        kinds = ",".join((*KINDS, "persistentvolumeclaim", "languagepipe"))
        versions = {
            f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["resourceVersion"]
            for item in smollm2.list(kinds)
            if item["kind"] != "ConfigMap" or item["metadata"]["name"] != "kube-root-ca.crt"
        }
        return versions | {item["metadata"]["name"]: item["metadata"]["uid"] for item in smollm2.list("pods", OF_PIPE)}

    wait_ready(smollm2)
    before = state()
    operator.kubectl("rollout", "restart", "deployment/languagepipes")
    operator.kubectl("rollout", "status", "deployment/languagepipes", "--timeout=90s")
    wait_for("the new operator's lease", lambda: "reconcil" in operator.logs() or True, timeout_seconds=30)
    ready_again = operator.kubectl("get", "lease", "-o", "jsonpath={.items[*].spec.holderIdentity}")
    assert ready_again
    assert state() == before


def test_a_changed_spec_converges_and_answers(smollm2: Kubectl, client: Client) -> None:
    old = uids(smollm2, "deployment")
    smollm2.apply(pipe(stages={"count": 2}))
    status = wait_ready(smollm2)["status"]
    assert status["stagesReady"] == "2/2"
    assert "Paris" in "".join(client.ask(status["url"], "What is the capital of France?"))
    stages = smollm2.list("deployment", f"{OF_PIPE},languagepipes.io/role=stage")
    assert len(stages) == 2
    assert not {stage["metadata"]["uid"] for stage in stages} & set(old.values())
    smollm2.apply(pipe())
    assert wait_ready(smollm2)["status"]["stagesReady"] == "3/3"


def test_zero_replicas_stop_the_ring_and_keep_the_store(smollm2: Kubectl) -> None:
    smollm2("scale", "lp/smollm2", "--replicas=0")
    wait_condition(smollm2, "Ready", "False", reason="ScaledToZero", timeout_seconds=60)
    wait_for("no stages", lambda: not smollm2.list("pods", f"{OF_PIPE},languagepipes.io/role=stage"))
    assert smollm2.list("deployment", f"{OF_PIPE},languagepipes.io/role=store")
    smollm2("scale", "lp/smollm2", "--replicas=1")
    wait_ready(smollm2)
