"""Explains the scheduler's message: which resource is too small, by how much, on how many nodes.

Texts are those of kube-scheduler (pkg/scheduler/framework/types.go, FitError.Error, and the plugins' ErrReason…).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from languagepipes_api.quantity import format_bytes, parse_quantity

from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.ownership import Member, pod_condition
from languagepipes_operator.planning.nodes import Node
from languagepipes_operator.status.failures import Failure, failure, quoted

_NO_NODE = re.compile(r"0/(\d+) nodes are available:\s*(.*)", re.DOTALL)
_COUNTED = re.compile(r"(\d+) (.+)")
_CLAIM_MISSING = re.compile(r'persistentvolumeclaim "([^"]+)" not found')
_TAINT = re.compile(r"had (?:untolerated taint(?:\(s\))?|taints? .*)\s*(\{[^}]*\})?")
_GPU = "nvidia.com/gpu"

# (part of a plugin's message, our words, the remedy)
_PLAIN: tuple[tuple[str, str, str], ...] = (
    ("Too many pods", "cannot run more pods", "add a node, or raise its kubelet's maxPods"),
    ("topology spread", "would break its topologySpreadConstraints", "relax them in the template"),
    ("anti-affinity", "are excluded by anti-affinity", "relax the affinity in the template, or add a node"),
    ("pod affinity", "do not match its pod affinity", "relax the affinity in the template"),
    ("were unschedulable", "are cordoned", "kubectl uncordon one"),
    ("volume node affinity conflict", "cannot reach its volume", "free the node that holds the volume"),
    ("PersistentVolume's node affinity", "cannot reach its volume", "free the node that holds the volume"),
    ("available persistent volumes", "have no volume for its claim", "see kubectl describe pvc"),
    ("enough free storage", "have too little storage for its claim", "ask for a smaller spec.cache.size"),
    ("free ports", "have its host ports in use", "free those ports"),
)


def unschedulable(member: Member, nodes: Sequence[Node] | None) -> Iterator[Failure]:
    """Why no node takes the member's pod; nothing while the scheduler has not said so."""
    if member.pod is None:
        return
    condition = pod_condition(member.pod, "PodScheduled")
    if condition.get("status") != "False" or condition.get("reason") != "Unschedulable":
        return
    said = str(condition.get("message", ""))
    title = member.title
    claim = _CLAIM_MISSING.search(said)
    if claim:
        yield failure(
            "MissingClaim",
            f"{title}: there is no PersistentVolumeClaim {claim[1]} in the pipe's namespace: create it, or correct the "
            "pvc:// claim in spec.model.source",
        )
        return
    if "unbound immediate PersistentVolumeClaims" in said:
        yield failure(
            "VolumePending",
            f"{title}: its PersistentVolumeClaim has no volume yet: see kubectl describe pvc in the pipe's namespace",
        )
        return
    parts = _NO_NODE.match(said)
    if not parts:
        yield failure("Unschedulable", f"{title}: the scheduler finds no node for it: {quoted(said)}")
        return
    count = int(parts[1])
    if not count:
        yield failure("Unschedulable", f"{title}: the cluster has no node: add one")
        return
    # The text after the first full stop is about pre-emption, which does not help here.
    reasons = parts[2].split(". ")[0].rstrip(". ")
    told = [_in_words(match[1], match[2], member.pod, nodes) for match in _counted(reasons)]
    if not told:
        yield failure("Unschedulable", f"{title}: the scheduler finds no node for it: {quoted(reasons)}")
        return
    why = ", ".join(words for words, _ in told)
    remedies = "; or ".join(dict.fromkeys(remedy for _, remedy in told))
    of = "the only node cannot run it" if count == 1 else f"none of {count} nodes can run it"
    yield failure("Unschedulable", f"{title}: {of}: {why}. To fix this: {remedies}")


def requested(pod: Manifest, resource: str) -> str | int | None:
    """What the pod's containers ask for together; None if nothing. A pod of ours has one container."""
    amounts = [
        (container.get("resources", {}).get("requests") or {}).get(resource)
        or (container.get("resources", {}).get("limits") or {}).get(resource)
        for container in pod.get("spec", {}).get("containers") or ()
    ]
    stated = [amount for amount in amounts if amount is not None]
    return stated[0] if stated else None


def _counted(reasons: str) -> Iterator[re.Match[str]]:
    """Each "2 Insufficient memory" of the list. A comma inside a reason ends up with no number in front and is left."""
    for part in re.split(r", (?=\d+ )", reasons):
        match = _COUNTED.fullmatch(part.strip())
        if match:
            yield match


def _in_words(count: str, reason: str, pod: Manifest, nodes: Sequence[Node] | None) -> tuple[str, str]:
    """(what is wrong on how many nodes, what helps)."""
    if reason.startswith("Insufficient "):
        return _short_of(count, reason.removeprefix("Insufficient "), pod, nodes)
    if "node affinity/selector" in reason:
        return _of(count, f"do not match its {_selection(pod)}"), "correct the template, or label a node"
    for words, ours, remedy in _PLAIN:
        if words in reason:
            return _of(count, ours), remedy
    taint = _TAINT.search(reason)
    if taint:
        name = f" {taint[1]}" if taint[1] else ""
        return (
            _of(count, f"have a taint{name} that it does not tolerate"),
            "add the toleration to its template, or remove the taint",
        )
    return f"{count} {reason}", "see kubectl describe pod"


def _of(count: str, what: str) -> str:
    """`what` holds of so many nodes; it begins with a verb in the plural."""
    verb, _, rest = what.partition(" ")
    singular = {"are": "is", "have": "has", "do": "does"}
    return f"{count} {singular.get(verb, verb) if count == '1' else verb} {rest}"


def _selection(pod: Manifest) -> str:
    """What of the pod bounds it to some nodes; what the operator itself prefers is not among it."""
    spec = pod.get("spec", {})
    parts = []
    if selector := spec.get("nodeSelector"):
        parts.append("nodeSelector " + ",".join(f"{key}={value}" for key, value in sorted(selector.items())))
    if "requiredDuringSchedulingIgnoredDuringExecution" in (spec.get("affinity") or {}).get("nodeAffinity", {}):
        parts.append("node affinity")
    return " and ".join(parts) or "nodeSelector or affinity"


def _short_of(count: str, resource: str, pod: Manifest, nodes: Sequence[Node] | None) -> tuple[str, str]:
    asked = requested(pod, resource)
    amount = _amount(resource, asked)
    shortage = _shortage(resource, asked, nodes)
    asks = f" (it requests {amount}{shortage})" if amount else ""
    words = _of(count, f"have too little free {resource}{asks}")
    if resource == "memory":
        return (
            words,
            "use more stages or a shorter maxContextLength, lower its memory request, or add a node with more memory",
        )
    if resource == _GPU:
        return words, "add a GPU node, check that the device plugin runs, or set device to CPU"
    return words, f"lower its request for {resource} in the template, or add a node"


def _amount(resource: str, asked: str | int | None) -> str:
    if asked is None:
        return ""
    if resource in ("memory", "ephemeral-storage"):
        try:
            return format_bytes(parse_quantity(asked))
        except ValueError:
            return str(asked)
    return str(asked)


def _shortage(resource: str, asked: str | int | None, nodes: Sequence[Node] | None) -> str:
    """By how much the largest node falls short, were it empty; or that others hold what it has."""
    if asked is None or not nodes:
        return ""
    try:
        wanted = parse_quantity(asked)
    except ValueError:
        return ""
    if resource == "memory":
        largest = max(node.memory_bytes for node in nodes)
        if wanted > largest:
            return f"; the largest node has {format_bytes(largest)}, {format_bytes(wanted - largest)} too little"
        return f"; the largest node has {format_bytes(largest)}, part of it is used by other pods"
    if resource == _GPU:
        most = max(max(node.gpus, len(node.gpu_memory_bytes)) for node in nodes)
        if wanted > most:
            return f"; the most on one node is {most}, {wanted - most} too few"
        return f"; the most on one node is {most}, used by other pods"
    return ""
