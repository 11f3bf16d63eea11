"""The main job on a cluster: helm install, kubectl apply, Ready, and an answer through the Service's DNS name."""

from __future__ import annotations

import pytest
from support.greedy import QUESTIONS
from support.installation import Installation
from support.kubectl import Kubectl
from support.serving import Client

pytestmark = pytest.mark.kubernetes


def test_a_client_pod_streams_the_greedy_answers_of_unsplit_transformers(
    smollm2: Kubectl, client: Client, greedy_answers: list[str]
) -> None:
    url = smollm2.get("languagepipe", "smollm2")["status"]["url"]
    assert url == f"http://smollm2.{smollm2.namespace}.svc/v1"
    streamed = [client.ask(url, question) for question in QUESTIONS]
    assert ["".join(pieces) for pieces in streamed] == greedy_answers
    assert "Paris" in "".join(streamed[0])
    assert all(len(pieces) > 5 for pieces in streamed)


def test_stages_run_on_both_nodes(smollm2: Kubectl) -> None:
    stages = smollm2.list("pods", "languagepipes.io/pipe=smollm2,languagepipes.io/role=stage")
    assert len(stages) == 3
    assert len({pod["spec"]["nodeName"] for pod in stages}) == 2


def test_kubectl_get_shows_a_ready_pipe_in_one_line(smollm2: Kubectl) -> None:
    header, line = smollm2("get", "lp").splitlines()
    assert header.split() == ["NAME", "MODEL", "PHASE", "READY", "REASON", "PROGRESS", "STAGES", "REPLICAS", "AGE"]
    assert line.startswith("smollm2")
    assert "Ready" in line
    assert "3/3" in line


def test_status_says_who_runs_which_layers_where(smollm2: Kubectl) -> None:
    status = smollm2.get("languagepipe", "smollm2")["status"]
    assert [stage["layers"] for stage in status["stages"]] == ["1-10", "11-20", "21-29"]
    assert all(
        stage["readyReplicas"] == 1 and stage["nodes"] and stage["weightBytes"] > 1e7 for stage in status["stages"]
    )
    assert status["stagesReady"] == "3/3"
    assert status["resolvedRevision"]


def test_stage_pods_have_no_service_account_token_and_no_root(smollm2: Kubectl) -> None:
    for pod in smollm2.list("pods", "languagepipes.io/pipe=smollm2"):
        assert pod["spec"]["automountServiceAccountToken"] is False
        mounted = [volume for volume in pod["spec"]["volumes"] if "projected" in volume]
        assert mounted == []


def test_helm_test_passes(smollm2: Kubectl, operator: Installation) -> None:
    assert "Phase:          Succeeded" in operator.helm("test", "languagepipes", "--timeout", "2m")
