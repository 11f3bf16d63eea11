"""What the operator may do, written a second time: the roles are held to this, rendered and on an API server."""

from __future__ import annotations

from support.helm_chart import OPERATOR

# (API group, resource or resource/subresource, verb, name; "*" for every name).
Permission = tuple[str, str, str, str]

WRITTEN = {
    ("apps", "deployments"),
    ("", "services"),
    ("", "secrets"),
    ("", "configmaps"),
    ("", "persistentvolumeclaims"),
    ("policy", "poddisruptionbudgets"),
    ("networking.k8s.io", "networkpolicies"),
}
IN_A_NAMESPACE: set[Permission] = (
    {(group, kind, verb, "*") for group, kind in WRITTEN
     for verb in ("get", "list", "watch", "create", "patch", "delete")}
    | {("languagepipes.io", "languagepipes", verb, "*") for verb in ("get", "list", "watch")}
    | {("languagepipes.io", "languagepipes/status", "patch", "*")}
    | {("", "pods", verb, "*") for verb in ("list", "watch")}
    | {("", "events", verb, "*") for verb in ("list", "create")}
)  # fmt: skip
NODES: set[Permission] = {("", "nodes", verb, "*") for verb in ("list", "watch")}
LEASE: set[Permission] = {("coordination.k8s.io", "leases", "create", "*")} | {
    ("coordination.k8s.io", "leases", verb, OPERATOR) for verb in ("get", "update")
}
