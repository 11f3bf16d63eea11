"""What a set of NetworkPolicies lets through, by the rules of networking.k8s.io/v1
(https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/network-policy-v1/).

A pod is isolated for a direction once some policy of its namespace selects it for that direction; then only what some
rule of such a policy names may pass. A connection passes if the dialler's egress and the listener's ingress both let
it. Replies always pass. Ports are the listener's own, after a Service's translation. Unknown fields are errors here,
so that nothing is overlooked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any


@dataclass(frozen=True)
class Pod:
    """namespace_labels: of its namespace, beside its name."""

    name: str
    namespace: str
    labels: Mapping[str, str]
    address: str = "10.244.0.1"
    namespace_labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outside:
    """No pod: a machine on the internet, a node, a client behind a load balancer."""

    name: str
    address: str


End = Pod | Outside


def allowed(
    policies: Sequence[Mapping[str, Any]], dialler: End, listener: End, port: int, protocol: str = "TCP"
) -> bool:
    """Whether a connection from `dialler` to `listener` on that port passes."""
    return _passes(policies, dialler, listener, "Egress", port, protocol) and _passes(
        policies, listener, dialler, "Ingress", port, protocol
    )


def _passes(
    policies: Sequence[Mapping[str, Any]], subject: End, other: End, direction: str, port: int, protocol: str
) -> bool:
    if isinstance(subject, Outside):
        return True
    isolating = [
        policy
        for policy in policies
        if policy["metadata"]["namespace"] == subject.namespace
        and _matches(policy["spec"]["podSelector"], subject.labels)
        and direction in _types(policy["spec"])
    ]
    if not isolating:
        return True
    rules_field, peers_field = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    for policy in isolating:
        for rule in policy["spec"].get(rules_field, ()):
            _known(rule, peers_field, "ports")
            if _on_ports(rule.get("ports"), port, protocol) and _names(
                rule.get(peers_field), other, policy["metadata"]["namespace"]
            ):
                return True
    return False


def _types(spec: Mapping[str, Any]) -> Sequence[str]:
    _known(spec, "podSelector", "policyTypes", "ingress", "egress")
    stated: Sequence[str] | None = spec.get("policyTypes")
    return stated if stated is not None else ["Ingress", *(["Egress"] if "egress" in spec else [])]


def _on_ports(ports: Sequence[Mapping[str, Any]] | None, port: int, protocol: str) -> bool:
    """No ports, or an empty list, is every port."""
    if not ports:
        return True
    for item in ports:
        _known(item, "protocol", "port", "endPort")
        first = item.get("port")
        assert first is None or isinstance(first, int), "named ports are not evaluated here"
        if item.get("protocol", "TCP") == protocol and (first is None or first <= port <= item.get("endPort", first)):
            return True
    return False


def _names(peers: Sequence[Mapping[str, Any]] | None, other: End, namespace: str) -> bool:
    """No peers, or an empty list, is everybody. Within one peer, both selectors must hold."""
    if not peers:
        return True
    return any(_is_peer(peer, other, namespace) for peer in peers)


def _is_peer(peer: Mapping[str, Any], other: End, namespace: str) -> bool:
    _known(peer, "podSelector", "namespaceSelector", "ipBlock")
    if "ipBlock" in peer:
        assert len(peer) == 1, "ipBlock stands alone"
        block = peer["ipBlock"]
        _known(block, "cidr", "except")
        address = ip_address(other.address)
        return address in ip_network(block["cidr"]) and not any(
            address in ip_network(part) for part in block.get("except", ())
        )
    if isinstance(other, Outside):
        return False
    if "namespaceSelector" in peer:
        of_namespace = {"kubernetes.io/metadata.name": other.namespace, **other.namespace_labels}
        if not _matches(peer["namespaceSelector"], of_namespace):
            return False
    elif other.namespace != namespace:
        return False
    return _matches(peer.get("podSelector", {}), other.labels)


def _matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """An empty selector matches everything."""
    _known(selector, "matchLabels", "matchExpressions")
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for demand in selector.get("matchExpressions", ()):
        _known(demand, "key", "operator", "values")
        value = labels.get(demand["key"])
        holds = {
            "In": value is not None and value in demand.get("values", ()),
            "NotIn": value is None or value not in demand.get("values", ()),
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[demand["operator"]]
        if not holds:
            return False
    return True


def _known(value: Mapping[str, Any], *fields: str) -> None:
    assert set(value) <= set(fields), f"{set(value) - set(fields)} is not evaluated here"
