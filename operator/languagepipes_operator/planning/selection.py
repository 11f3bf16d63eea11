"""Whether a template lets its pod run on a node, judged as the scheduler does: selector, required affinity, taints.

(https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/). What depends on other pods (pod affinity,
spread constraints) is the scheduler's alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from languagepipes_api.template import NodeRequirement, NodeTerm, PodTemplate, TolerationSpec

from languagepipes_operator.planning.nodes import Node, Taint

_REPELLING = ("NoSchedule", "NoExecute")


def why_not(template: PodTemplate | None, node: Node) -> str:
    """Why the pod may not run there, in a few words; empty if it may."""
    return next(_obstacles(template or PodTemplate(), node), "")


def selects(template: PodTemplate | None) -> bool:
    """Whether the template says by itself where its pod goes."""
    return template is not None and bool(template.node_selector or _required_terms(template))


def matches(template: PodTemplate | None, node: Node) -> bool:
    """Whether the template's selector and required affinity choose the node, whatever its taints."""
    return template is None or not any(_unselected(template, node))


def _obstacles(template: PodTemplate, node: Node) -> Iterator[str]:
    if not node.schedulable:
        yield "not ready or cordoned"
    yield from _unselected(template, node)
    for taint in node.taints:
        if taint.effect in _REPELLING and not any(tolerates(each, taint) for each in template.tolerations):
            yield f"taint {taint.key}{'=' + taint.value if taint.value else ''}:{taint.effect}"


def _unselected(template: PodTemplate, node: Node) -> Iterator[str]:
    for key, value in template.node_selector.items():
        if node.labels.get(key) != value:
            yield f"no label {key}={value}"
    terms = _required_terms(template)
    if terms and not any(_term_holds(term, node) for term in terms):
        yield "node affinity"


def _required_terms(template: PodTemplate) -> tuple[NodeTerm, ...]:
    affinity = template.affinity and template.affinity.node_affinity
    required = affinity and affinity.required_during_scheduling_ignored_during_execution
    return required.node_selector_terms if required else ()


def _term_holds(term: NodeTerm, node: Node) -> bool:
    if not term.match_expressions and not term.match_fields:
        return False  # an empty term matches nothing
    return all(_holds(each, node.labels) for each in term.match_expressions) and all(
        _holds(each, {"metadata.name": node.name}) for each in term.match_fields
    )


def _holds(requirement: NodeRequirement, values: Mapping[str, str]) -> bool:
    value = values.get(requirement.key)
    match requirement.operator:
        case "In":
            return value is not None and value in requirement.values
        case "NotIn":
            return value is None or value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt":
            if value is None or not value.isascii() or not value.isdecimal():
                return False
            bound = int(requirement.values[0])
            return int(value) > bound if requirement.operator == "Gt" else int(value) < bound


def tolerates(toleration: TolerationSpec, taint: Taint) -> bool:
    """Whether a pod with the toleration may be put on a node with the taint."""
    if toleration.effect is not None and toleration.effect != taint.effect:
        return False
    if toleration.key is not None and toleration.key != taint.key:
        return False
    return toleration.operator == "Exists" or (toleration.value or "") == taint.value
