"""NetworkPolicies: who may open a connection to whom. One for each place in the ring, and one for the store.

What the ring opens: the End Model dials stage 1, each stage dials its successor, and the last stage dials the End
Model; all dial the store. So a place accepts connections to the ring's port only from its predecessor, and opens
connections only to its successor, the store and DNS. A selector of labels cannot express "of the same replica" without
a policy for each replica and stage, which for 16 replicas of 64 stages were a thousand objects: here a place may reach
its neighbours of any replica of the pipe, and the certificates, which name the replica, refuse the rest.

A plan that goes away must not be cut off while its pods serve: the numbers of stages of all plans that still have
Deployments or pods are in force together.

Ports, as everywhere in NetworkPolicies, are the pods' own and not those of a Service.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

from languagepipes_api import source as sources
from languagepipes_api.names import (
    API_PORT,
    FURTHER_STORE,
    LABEL_PLAN,
    LABEL_ROLE,
    LABEL_STAGE,
    RING_PORT,
    STORE_PORT,
    TELEMETRY_PORT,
)

from languagepipes_operator import names
from languagepipes_operator.children.labels import (
    OPERATOR_LABELS,
    labels,
    labels_of_pipe,
    metadata,
    ring_selector,
    store_labels,
)
from languagepipes_operator.decide import inputs
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.observe.stored_plans import StoredPlan
from languagepipes_operator.settings import OperatorSettings

Peer = dict[str, Any]
Rule = dict[str, Any]

# To anywhere: cluster DNS is pods in one cluster, an address of the node in the next. 5353 is where OpenShift's
# DNS pods listen behind port 53.
_DNS_PORTS = [{"protocol": protocol, "port": port} for port in (53, 5353) for protocol in ("UDP", "TCP")]
_HTTP_PORT, _HTTPS_PORT = 80, 443


def store_policy(snapshot: Snapshot, settings: OperatorSettings, *, key: str, source: str) -> Manifest:
    """Members and the operator in; the model's source and DNS out. key: which of the pipe's stores."""
    pipe = snapshot.pipe.name
    own = store_labels(pipe, key)
    readers: list[Peer] = [{"podSelector": ring_selector(pipe)}]
    ingress = [_rule("from", [*readers, *_operator(settings)], STORE_PORT), _telemetry()]
    return _policy(
        metadata(snapshot, names.store_policy(pipe, key), own),
        own,
        ingress,
        [_dns(), *_way_out(source, settings.hub_endpoint, inputs.proxies(snapshot.pipe, settings))],
    )


def ring_policies(snapshot: Snapshot, stored: StoredPlan, *, further_stores: bool) -> list[Manifest]:
    """The End Model's, and one for each stage. further_stores: whether the pipe has another store than its first."""
    pipe = snapshot.pipe.name
    counts = _stage_counts(snapshot, stored)
    end_model: Peer = {"podSelector": {"matchLabels": {**labels_of_pipe(pipe), LABEL_ROLE: "end-model"}}}
    stores: list[Peer] = [{"podSelector": {"matchLabels": store_labels(pipe)}}]
    if further_stores:
        stores.append({"podSelector": {"matchLabels": {**labels_of_pipe(pipe), LABEL_ROLE: FURTHER_STORE}}})
    to_store = _rule("to", stores, STORE_PORT)
    found = [
        _policy(
            _metadata(snapshot, "end-model"),
            {**labels_of_pipe(pipe), LABEL_ROLE: "end-model"},
            [
                _rule("from", [_stage(pipe, last) for last in counts], RING_PORT),
                # Clients and ingress controllers, which may be on the host's network.
                {"ports": [_tcp(API_PORT)]},
                _telemetry(),
            ],
            [_rule("to", [_stage(pipe, 1)], RING_PORT), to_store, _dns()],
        )
    ]
    for place in range(1, max(counts) + 1):
        before = end_model if place == 1 else _stage(pipe, place - 1)
        after = [_stage(pipe, place + 1)] if place < max(counts) else []
        if place in counts:
            after.append(end_model)
        found.append(
            _policy(
                _metadata(snapshot, f"stage-{place}"),
                {**labels_of_pipe(pipe), LABEL_ROLE: "stage", LABEL_STAGE: str(place)},
                [_rule("from", [before], RING_PORT), _telemetry()],
                [_rule("to", after, RING_PORT), to_store, _dns()],
            )
        )
    return found


def _stage_counts(snapshot: Snapshot, stored: StoredPlan) -> list[int]:
    """How many stages the plans in force have, ascending: the wanted one, and those whose members are still there."""
    live: dict[str, int] = {}
    children = snapshot.children
    for item in [*children.deployments.values(), *children.pods.values()]:
        found = item["metadata"].get("labels", {})
        place = found.get(LABEL_STAGE, "")
        if place.isdecimal():
            plan = found.get(LABEL_PLAN, "")
            live[plan] = max(live.get(plan, 0), int(place))
    live[stored.plan.hash] = len(stored.plan.stages)
    return sorted(set(live.values()))


def _stage(pipe: str, place: int) -> Peer:
    return {"podSelector": {"matchLabels": {**labels_of_pipe(pipe), LABEL_ROLE: "stage", LABEL_STAGE: str(place)}}}


def _operator(settings: OperatorSettings) -> list[Peer]:
    """The operator's pods. Outside a cluster it has none, and comes through a proxy that no policy can name."""
    if not settings.pod_namespace:
        return []
    return [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.pod_namespace}},
            "podSelector": {"matchLabels": OPERATOR_LABELS},
        }
    ]


def _way_out(source: str, hub_endpoint: str, proxies: Sequence[str]) -> list[Rule]:
    """To where the source is: a site, the Hub, or the mirror that stands for it; and to the proxies on the way.
    Redirects lead to port 443 of anywhere. What is inside the cluster, known by its name, is reached on whatever port
    its pods have.
    """
    scheme = sources.parse_source(source).scheme
    if scheme == "pvc":
        return []
    rules: list[Rule] = [{"ports": [_tcp(_HTTPS_PORT)]}]
    for address in (source if scheme == "https" else hub_endpoint, *proxies):
        parts = _parts(address)
        port = _tcp(_port(parts) or (_HTTP_PORT if parts.scheme == "http" else _HTTPS_PORT))
        if port not in rules[0]["ports"]:
            rules[0]["ports"].append(port)
        host = (parts.hostname or "").removesuffix(".").split(".")
        if len(host) >= 3 and host[2] == "svc":
            namespace = {"matchLabels": {"kubernetes.io/metadata.name": host[1]}}
            rules.append({"to": [{"namespaceSelector": namespace}]})
    return rules


def _parts(address: str) -> SplitResult:
    """Of no address at all for what is none: a template's proxy is a text of the user's."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _port(parts: SplitResult) -> int | None:
    """None also for a port that cannot exist, which a source may name: the store reports that."""
    try:
        return parts.port
    except ValueError:
        return None


def _telemetry() -> Rule:
    """From everywhere: monitoring, the operator, and kubelet, whose probes no policy can name by label. The port
    shows counts and states, never text.
    """
    return {"ports": [_tcp(TELEMETRY_PORT)]}


def _dns() -> Rule:
    return {"ports": [dict(port) for port in _DNS_PORTS]}


def _rule(direction: str, peers: Sequence[Peer], port: int) -> Rule:
    return {direction: list(peers), "ports": [_tcp(port)]}


def _tcp(port: int | None) -> dict[str, Any]:
    return {"protocol": "TCP", "port": port}


def _metadata(snapshot: Snapshot, place: str) -> dict[str, Any]:
    pipe = snapshot.pipe.name
    return metadata(snapshot, names.policy(pipe, place), labels(pipe, place))


def _policy(own: dict[str, Any], selected: dict[str, str], ingress: list[Rule], egress: list[Rule]) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": own,
        "spec": {
            "podSelector": {"matchLabels": selected},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }
