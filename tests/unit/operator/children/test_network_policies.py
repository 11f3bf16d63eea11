"""The rendered policies against every connection that a ring makes, and against those that it must not make."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from languagepipes_api.names import API_PORT, RING_PORT, STORE_PORT, TELEMETRY_PORT
from languagepipes_operator.children.labels import OPERATOR_LABELS
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Snapshot
from support.example_pipes import OPERATOR_NAMESPACE, living, of_kind, pipe_snapshot, rendered, stored_plan_of
from support.policy_evaluator import End, Outside, Pod, allowed

OPERATOR = Pod("operator", OPERATOR_NAMESPACE, {**OPERATOR_LABELS, "app.kubernetes.io/name": "languagepipes"})
PROMETHEUS = Pod("prometheus", "monitoring", {"app": "prometheus"})
CLIENT = Pod("client", "apps", {"app": "chat"})
NEIGHBOUR = Pod("neighbour", "default", {"app": "chat"})
DNS = Pod("coredns", "kube-system", {"k8s-app": "kube-dns"})
NODE_DNS = Outside("node-local DNS", "169.254.20.10")
KUBELET = Outside("kubelet", "198.18.0.2")
GATEWAY = Outside("an ingress controller on the host's network", "198.18.0.3")
INTERNET = Outside("the internet", "203.0.113.7")
KUBE_API = Outside("the API server", "198.18.0.1")


@dataclass(frozen=True)
class Cluster:
    """A pipe's pods by (replica, role, stage), and the policies in force."""

    pods: dict[tuple[int, str, int], Pod]
    policies: list[Manifest]
    stages: int

    def stage(self, place: int, replica: int = 0) -> Pod:
        return self.pods[replica, "stage", place]

    def end_model(self, replica: int = 0) -> Pod:
        return self.pods[replica, "end-model", 0]

    @property
    def store(self) -> Pod:
        return self.pods[-1, "store", 0]

    @property
    def members(self) -> list[Pod]:
        return [pod for (replica, _, _), pod in self.pods.items() if replica >= 0]

    def ring(self, replica: int) -> list[tuple[Pod, Pod]]:
        """Who dials whom: the End Model opens with stage 1, and the hello returns from the last stage."""
        passed = [self.end_model(replica), *(self.stage(place, replica) for place in range(1, self.stages + 1))]
        return list(zip(passed, [*passed[1:], passed[0]], strict=True))

    def passes(self, dialler: End, listener: End, port: int, protocol: str = "TCP") -> bool:
        return allowed(self.policies, dialler, listener, port, protocol)


def pods_of(manifests: list[Manifest]) -> dict[tuple[int, str, int], Pod]:
    found = {}
    for deployment in of_kind(manifests, "Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        key = (
            int(labels.get("languagepipes.io/chain", -1)),
            labels["languagepipes.io/role"],
            int(labels.get("languagepipes.io/stage", 0)),
        )
        found[key] = Pod(deployment["metadata"]["name"], deployment["metadata"]["namespace"], labels)
    return found


def cluster_of(snapshot: Snapshot, **settings: Any) -> Cluster:
    """settings: of the operator."""
    manifests = rendered(snapshot, **settings)
    return Cluster(pods_of(manifests), of_kind(manifests, "NetworkPolicy"), snapshot.pipe.spec.stages.size)


def a_cluster(*, stages: int = 3, **spec: Any) -> Cluster:
    return cluster_of(pipe_snapshot(replicas=2, stages={"count": stages}, **spec))


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("replica", [0, 1])
def test_every_connection_of_the_ring_passes(stages: int, replica: int) -> None:
    cluster = a_cluster(stages=stages)

    assert len(cluster.ring(replica)) == stages + 1
    for dialler, listener in cluster.ring(replica):
        assert cluster.passes(dialler, listener, RING_PORT), f"{dialler.name} to {listener.name}"


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_no_other_connection_between_members_passes(stages: int) -> None:
    cluster = a_cluster(stages=stages)
    # A neighbour of another replica is refused by its certificate: labels cannot tell (see `policies`).
    same_place = {
        (dialler.name, listener.name)
        for replica in (0, 1)
        for other in (0, 1)
        for (dialler, _), (_, listener) in zip(cluster.ring(replica), cluster.ring(other), strict=True)
    }

    for dialler in cluster.members:
        for listener in cluster.members:
            if dialler == listener:
                continue
            expected = (dialler.name, listener.name) in same_place
            assert cluster.passes(dialler, listener, RING_PORT) == expected, f"{dialler.name} to {listener.name}"
            assert not cluster.passes(dialler, listener, API_PORT), f"{dialler.name} to the API of {listener.name}"


def test_a_stage_does_not_reach_over_its_successor() -> None:
    cluster = a_cluster()

    assert not cluster.passes(cluster.stage(1), cluster.stage(3), RING_PORT)
    assert not cluster.passes(cluster.stage(3), cluster.stage(2), RING_PORT)
    assert not cluster.passes(cluster.stage(1), cluster.end_model(), RING_PORT)


def test_members_and_the_operator_read_from_the_store_and_nobody_else_does() -> None:
    cluster = a_cluster()

    for reader in [*cluster.members, OPERATOR]:
        assert cluster.passes(reader, cluster.store, STORE_PORT), reader.name
    for other in (CLIENT, NEIGHBOUR, PROMETHEUS, INTERNET, GATEWAY):
        assert not cluster.passes(other, cluster.store, STORE_PORT), other.name


def test_only_the_operators_own_pods_pass_as_the_operator() -> None:
    cluster = a_cluster()
    pretender = replace(OPERATOR, namespace="default")
    colleague = replace(OPERATOR, labels={"app": "other"})

    assert not cluster.passes(pretender, cluster.store, STORE_PORT)
    assert not cluster.passes(colleague, cluster.store, STORE_PORT)


def test_telemetry_is_open_to_monitoring_the_operator_and_the_kubelets_probes() -> None:
    cluster = a_cluster()

    for pod in cluster.pods.values():
        for reader in (PROMETHEUS, OPERATOR, KUBELET):
            assert cluster.passes(reader, pod, TELEMETRY_PORT), f"{reader.name} to {pod.name}"


def test_clients_reach_the_api_from_anywhere_and_nothing_else() -> None:
    cluster = a_cluster()

    for client in (CLIENT, NEIGHBOUR, GATEWAY):
        assert cluster.passes(client, cluster.end_model(), API_PORT)
        for pod in cluster.members:
            assert not cluster.passes(client, pod, RING_PORT), f"{client.name} to {pod.name}"
        for place in (1, 2, 3):
            assert not cluster.passes(client, cluster.stage(place), API_PORT)


@pytest.mark.parametrize("protocol", ["UDP", "TCP"])
@pytest.mark.parametrize("server", [DNS, NODE_DNS], ids=lambda server: server.name)
def test_every_pod_resolves_names(server: End, protocol: str) -> None:
    cluster = a_cluster()

    for pod in cluster.pods.values():
        assert cluster.passes(pod, server, 53, protocol), pod.name


def test_only_the_store_reaches_the_internet() -> None:
    cluster = a_cluster()

    assert cluster.passes(cluster.store, INTERNET, 443)
    assert not cluster.passes(cluster.store, INTERNET, 80)
    for pod in cluster.members:
        for port in (80, 443, 6443, 8443):
            assert not cluster.passes(pod, INTERNET, port), pod.name
        assert not cluster.passes(pod, KUBE_API, 6443), pod.name


@pytest.mark.parametrize(
    ("source", "reached", "not_reached"),
    [
        ("https://mirror.example.com/models", 443, 8443),
        ("https://mirror.example.com:8443/models", 8443, 9443),
        ("https://mirror.example.com:65535/models", 65535, 9443),
    ],
)
def test_a_mirror_is_reached_on_its_own_port(source: str, reached: int, not_reached: int) -> None:
    cluster = a_cluster(source=source)

    assert cluster.passes(cluster.store, INTERNET, reached)
    assert not cluster.passes(cluster.store, INTERNET, not_reached)


@pytest.mark.parametrize("host", ["models.mirrors.svc", "models.mirrors.svc.cluster.local"])
def test_a_mirror_inside_the_cluster_is_reached_on_its_pods_port(host: str) -> None:
    cluster = a_cluster(source=f"https://{host}/models")

    assert cluster.passes(cluster.store, Pod("mirror", "mirrors", {"app": "mirror"}), 8443)
    assert not cluster.passes(cluster.store, Pod("mirror", "elsewhere", {"app": "mirror"}), 8443)


@pytest.mark.parametrize(
    ("endpoint", "reached", "not_reached"),
    [
        ("https://hub.example.com", 443, 8443),
        ("https://hub.example.com:8443", 8443, 9443),
        ("http://hub.example.com/mirror", 80, 8080),
    ],
)
def test_a_mirror_of_the_hub_is_reached_on_its_own_port(endpoint: str, reached: int, not_reached: int) -> None:
    cluster = cluster_of(pipe_snapshot(), hub_endpoint=endpoint)

    assert cluster.passes(cluster.store, INTERNET, reached)
    assert not cluster.passes(cluster.store, INTERNET, not_reached)


def test_a_mirror_of_the_hub_inside_the_cluster_is_reached_on_its_pods_port() -> None:
    cluster = cluster_of(pipe_snapshot(), hub_endpoint="http://hub.mirrors.svc")

    assert cluster.passes(cluster.store, Pod("mirror", "mirrors", {"app": "mirror"}), 8443)
    assert not cluster.passes(cluster.store, Pod("mirror", "elsewhere", {"app": "mirror"}), 8443)


@pytest.mark.parametrize("source", ["hf://Qwen/Qwen3-8B", "https://mirror.example.com/models"])
def test_a_proxy_is_reached_on_its_port_whoever_names_it(source: str) -> None:
    env = [{"name": "https_proxy", "value": "http://proxy.example:3128"}]
    of_pipe = a_cluster(source=source, store={"template": {"env": env}})
    of_chart = cluster_of(pipe_snapshot(source=source), hub_proxy="http://proxy.example:3128")

    for cluster in (of_pipe, of_chart):
        assert cluster.passes(cluster.store, INTERNET, 3128)
        assert cluster.passes(cluster.store, INTERNET, 443)
        assert not cluster.passes(cluster.members[0], INTERNET, 3128)
    assert not a_cluster(source=source).passes(of_pipe.store, INTERNET, 3128)


def test_a_proxy_inside_the_cluster_is_reached_on_its_pods_port() -> None:
    cluster = cluster_of(pipe_snapshot(), hub_proxy="http://squid.proxies.svc")

    assert cluster.passes(cluster.store, Pod("squid", "proxies", {"app": "squid"}), 3128)
    assert not cluster.passes(cluster.store, Pod("squid", "elsewhere", {"app": "squid"}), 3128)


def test_a_store_that_reads_a_volume_has_no_way_out() -> None:
    cluster = a_cluster(source="pvc://models/qwen3")

    assert not cluster.passes(cluster.store, INTERNET, 443)


@pytest.mark.parametrize("other", [("other", "default"), ("qwen3", "elsewhere")], ids=["another pipe", "same name"])
def test_two_pipes_never_touch_each_other(other: tuple[str, str]) -> None:
    name, namespace = other
    ours, theirs = a_cluster(), cluster_of(pipe_snapshot(name, namespace=namespace, replicas=2))
    both = replace(ours, policies=[*ours.policies, *theirs.policies])

    for dialler in theirs.pods.values():
        for listener in ours.members:
            assert not both.passes(dialler, listener, RING_PORT), f"{dialler.name} to {listener.name}"
        assert not both.passes(dialler, ours.store, STORE_PORT), dialler.name


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3), (1, 3), (3, 1)])
def test_a_plan_that_goes_away_is_not_cut_off_while_its_pods_are_there(before: int, after: int) -> None:
    old = pipe_snapshot(stages={"count": before})
    old_manifests = rendered(old)
    new = replace(pipe_snapshot(stages={"count": after}), children=living(old, old_manifests).children)
    during = rendered(new)
    policies = of_kind(during, "NetworkPolicy")

    for stages, manifests in ((before, old_manifests), (after, during)):
        plan = stored_plan_of(pipe_snapshot(stages={"count": stages})).plan.hash
        mine = [
            manifest
            for manifest in of_kind(manifests, "Deployment")
            if manifest["metadata"]["labels"].get("languagepipes.io/plan", plan) == plan
        ]
        cluster = Cluster(pods_of(mine), policies, stages)
        for dialler, listener in cluster.ring(0 if manifests is old_manifests else 1):
            assert cluster.passes(dialler, listener, RING_PORT), f"{dialler.name} to {listener.name}"

    assert len(policies) == max(before, after) + 2
    gone = rendered(pipe_snapshot(stages={"count": after}))
    assert len(of_kind(gone, "NetworkPolicy")) == after + 2


def test_no_policies_where_none_are_wanted() -> None:
    assert not of_kind(rendered(pipe_snapshot(networkPolicy={"enabled": False})), "NetworkPolicy")
