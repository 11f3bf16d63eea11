"""Services lead to the right pods, and a drain is never blocked for ever."""

from __future__ import annotations

from dataclasses import replace

import pytest
from languagepipes_operator import names
from languagepipes_operator.children.services import api_service
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.ownership import name_of
from languagepipes_operator.observe.snapshot import Children
from support.example_pipes import of_kind, pipe_snapshot, rendered


def selected(service: Manifest, manifests: list[Manifest]) -> list[str]:
    """The roles of the Deployments whose pods the Service selects."""
    return sorted(
        deployment["metadata"]["labels"]["languagepipes.io/role"]
        for deployment in of_kind(manifests, "Deployment")
        if service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    )


@pytest.mark.parametrize(
    ("role", "roles"),
    [
        ("api", ["end-model"] * 2),
        ("store", ["store"]),
        ("ring", sorted(["store", *["end-model", "stage", "stage"] * 2])),
    ],
)
def test_each_service_selects_its_own_pods_and_no_other_pipes(role: str, roles: list[str]) -> None:
    manifests = rendered(pipe_snapshot("a", replicas=2, stages={"count": 2}))
    (service,) = of_kind(manifests, "Service", role)

    assert selected(service, manifests) == roles
    assert selected(service, rendered(pipe_snapshot("a-b"))) == []


def test_clients_reach_the_api_at_the_pipes_own_name_on_port_80() -> None:
    (service,) = of_kind(rendered(pipe_snapshot("qwen3", namespace="models")), "Service", "api")

    assert names.api_url("qwen3", "models") == "http://qwen3.models.svc/v1"
    assert service["metadata"]["name"] == "qwen3"
    assert [(port["port"], port["targetPort"]) for port in service["spec"]["ports"]] == [(80, 8000)]
    # Only End Models whose ring is up are asked, but for the only one (tests/unit/operator/observe/test_endpoint.py).
    assert "publishNotReadyAddresses" not in service["spec"]
    assert api_service(pipe_snapshot(), publish_unready=True)["spec"]["publishNotReadyAddresses"] is True


def test_members_find_each_other_and_the_store_before_they_are_ready() -> None:
    services = of_kind(rendered(pipe_snapshot()), "Service")
    early = {
        service["metadata"]["labels"]["languagepipes.io/role"]
        for service in services
        if service["spec"].get("publishNotReadyAddresses")
    }

    assert early == {"ring", "store"}


def test_each_member_of_a_ring_has_one_budget() -> None:
    manifests = rendered(pipe_snapshot("a", replicas=2, stages={"count": 2}))
    deployments = of_kind(manifests, "Deployment")
    covered: list[str] = []
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        labels = budget["spec"]["selector"]["matchLabels"].items()
        pods = [each["spec"]["template"]["metadata"]["labels"] for each in deployments]
        covered += [name_of(each) for each, pod in zip(deployments, pods, strict=True) if labels <= pod.items()]

    # Two budgets of one pod would refuse its eviction for ever. The store has none.
    assert sorted(covered) == sorted(name_of(each) for each in deployments if "store" not in name_of(each))


def test_where_nodes_are_not_read_a_drain_takes_one_stage_at_a_time_and_a_sick_one_at_any_time() -> None:
    for budget in of_kind(rendered(pipe_snapshot()), "PodDisruptionBudget"):
        assert budget["spec"]["maxUnavailable"] == 1
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_where_they_are_nothing_is_evicted_before_the_operator_admits_it() -> None:
    budgets = of_kind(rendered(replace(pipe_snapshot(), emptied={})), "PodDisruptionBudget")

    assert [budget["spec"]["maxUnavailable"] for budget in budgets] == [0, 0]


def test_every_child_goes_with_the_pipe_and_holds_nothing_up() -> None:
    snapshot = pipe_snapshot(cache={"size": "1Gi"})

    for manifest in rendered(snapshot):
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("LanguagePipe", "qwen3", snapshot.uid)
        assert (owner["controller"], owner["blockOwnerDeletion"]) == (True, False)
        assert "finalizers" not in manifest["metadata"]
        assert manifest["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "languagepipes"


def test_a_volume_is_asked_for_only_where_the_spec_has_a_cache() -> None:
    (claim,) = of_kind(rendered(pipe_snapshot(cache={"size": "4096Mi"})), "PersistentVolumeClaim")

    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "4Gi"}}}
    assert of_kind(rendered(pipe_snapshot()), "PersistentVolumeClaim") == []


def test_a_claim_that_somebody_enlarged_stays_as_large() -> None:
    asked = pipe_snapshot(cache={"size": "4Gi"})
    for there, wanted in (("8Gi", "8Gi"), ("4096Mi", "4Gi"), ("1Gi", "4Gi")):
        (claim,) = of_kind(rendered(asked), "PersistentVolumeClaim")
        claim["spec"]["resources"]["requests"]["storage"] = there
        seen = replace(asked, children=Children(claims={claim["metadata"]["name"]: claim}))
        (again,) = of_kind(rendered(seen), "PersistentVolumeClaim")
        assert again["spec"]["resources"]["requests"]["storage"] == wanted
