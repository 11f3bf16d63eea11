"""What a pipe's author may say of a member's pod: a closed list of Kubernetes' own PodSpec fields.

Names, values and meaning are those of core/v1 (https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/
pod-v1/); every list, map and string is bounded, so that the CRD's rules have a cost. This module knows nothing of nodes
or plans.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from languagepipes_api.resource_model import ObjectName, ResourceModel, ResourceQuantity, Rule

KEY_MAX_LENGTH = 317  # a DNS subdomain of 253, a slash, a name of 63
_MAP_MAX = 16
_VALUE_PATTERN = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
_KEY_PATTERN = "^[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?$"

LabelKey = Annotated[str, Field(min_length=1, max_length=KEY_MAX_LENGTH, pattern=_KEY_PATTERN)]
LabelValue = Annotated[str, Field(max_length=63, pattern=_VALUE_PATTERN)]
LabelMap = Annotated[dict[str, LabelValue], Field(max_length=_MAP_MAX)]
ResourceMap = Annotated[dict[str, ResourceQuantity], Field(max_length=_MAP_MAX)]
Weight = Annotated[int, Field(ge=1, le=100)]


def _keys_rule(field: str, attribute: str) -> Rule:
    """The keys of a map: a structural schema can say nothing of them."""
    return Rule(
        f"a key of {field} is [PREFIX/]NAME of at most {KEY_MAX_LENGTH} letters, digits, -, _ and .",
        lambda model: all(
            len(key) <= KEY_MAX_LENGTH and re.fullmatch(_KEY_PATTERN, key, re.ASCII)
            for key in getattr(model, attribute)
        ),
        f"!has(self.{field}) || self.{field}.all(k, k.size() <= {KEY_MAX_LENGTH} && k.matches('{_KEY_PATTERN}'))",
        field,
    )


class ResourcesSpec(ResourceModel):
    """What the container asks for, and what it may not exceed."""

    requests: ResourceMap = Field(
        default_factory=dict,
        description="What the scheduler sets aside: cpu, memory, ephemeral-storage, or an extended resource. Memory "
        "that is absent is the plan's.",
    )
    limits: ResourceMap = Field(
        default_factory=dict,
        description="What it may not exceed. On device GPU without a GPU here, nvidia.com/gpu: 1 is added.",
    )

    rules = (_keys_rule("requests", "requests"), _keys_rule("limits", "limits"))


class TolerationSpec(ResourceModel):
    """A taint that keeps the pod away no longer."""

    key: LabelKey | None = Field(default=None, description="The taint's key; absent, with Exists: every taint.")
    operator: Literal["Equal", "Exists"] | None = Field(
        default=None, description="Equal (if absent) compares values, Exists does not."
    )
    value: LabelValue | None = Field(default=None, description="The taint's value, with Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="The taint's effect; absent: every effect."
    )
    toleration_seconds: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None, description="With NoExecute: how long it stays; for ever if absent."
    )

    rules = (
        Rule(
            "a toleration without key has operator Exists",
            lambda toleration: toleration.key is not None or toleration.operator == "Exists",
            "has(self.key) || (has(self.operator) && self.operator == 'Exists')",
        ),
        Rule(
            "operator Exists takes no value",
            lambda toleration: toleration.operator != "Exists" or not toleration.value,
            "!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''",
            "value",
        ),
        Rule(
            "tolerationSeconds goes with effect NoExecute",
            lambda toleration: toleration.toleration_seconds is None or toleration.effect == "NoExecute",
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds",
        ),
    )


_IN_HAS_VALUES = Rule(
    "In and NotIn need values, Exists and DoesNotExist take none",
    lambda one: bool(one.values) if one.operator in ("In", "NotIn") else one.operator in ("Gt", "Lt") or not one.values,
    "self.operator in ['In', 'NotIn'] ? (has(self.values) && self.values.size() > 0) : "
    "(self.operator in ['Gt', 'Lt'] || !has(self.values) || self.values.size() == 0)",
    "values",
)


class NodeRequirement(ResourceModel):
    """One demand on a node's labels or fields."""

    key: LabelKey = Field(description="The label's key, or the field's path.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = Field(
        description="How key and values relate."
    )
    # A field's value (metadata.name) is longer than a label's.
    values: Annotated[tuple[Annotated[str, Field(max_length=253)], ...], Field(max_length=_MAP_MAX, strict=False)] = (
        Field(default=(), description="For In and NotIn, some; for Gt and Lt, one whole number.")
    )

    rules = (
        _IN_HAS_VALUES,
        Rule(
            "Gt and Lt take one whole number",
            lambda one: (
                one.operator not in ("Gt", "Lt")
                or (len(one.values) == 1 and one.values[0].isascii() and one.values[0].isdecimal())
            ),
            "!(self.operator in ['Gt', 'Lt']) || (has(self.values) && self.values.size() == 1 && "
            "self.values[0].matches('^[0-9]+$'))",
            "values",
        ),
    )


class NodeTerm(ResourceModel):
    """Demands that hold all together."""

    match_expressions: Annotated[tuple[NodeRequirement, ...], Field(max_length=8, strict=False)] = Field(
        default=(), description="On the node's labels."
    )
    match_fields: Annotated[tuple[NodeRequirement, ...], Field(max_length=4, strict=False)] = Field(
        default=(), description="On the node's fields: metadata.name."
    )


class NodeTerms(ResourceModel):
    """Terms of which one must hold."""

    node_selector_terms: Annotated[tuple[NodeTerm, ...], Field(min_length=1, max_length=8, strict=False)] = Field(
        description="Of these one must hold."
    )


class PreferredNodeTerm(ResourceModel):
    """A term that is liked."""

    weight: Weight = Field(description="How much it is liked: 1 to 100.")
    preference: NodeTerm = Field(description="What is liked.")


class NodeAffinity(ResourceModel):
    """Which nodes it may run on, and which it likes."""

    required_during_scheduling_ignored_during_execution: NodeTerms | None = Field(
        default=None, description="Where it may run."
    )
    preferred_during_scheduling_ignored_during_execution: Annotated[
        tuple[PreferredNodeTerm, ...], Field(max_length=8, strict=False)
    ] = Field(default=(), description="Where it likes to run.")


class LabelRequirement(ResourceModel):
    """One demand on labels."""

    key: LabelKey = Field(description="The label's key.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(description="How key and values relate.")
    values: Annotated[tuple[LabelValue, ...], Field(max_length=_MAP_MAX, strict=False)] = Field(
        default=(), description="For In and NotIn."
    )

    rules = (_IN_HAS_VALUES,)


class LabelSelector(ResourceModel):
    """Chooses objects by their labels; an empty one chooses all."""

    match_labels: LabelMap = Field(default_factory=dict, description="Labels with these values.")
    match_expressions: Annotated[tuple[LabelRequirement, ...], Field(max_length=8, strict=False)] = Field(
        default=(), description="Further demands."
    )

    rules = (_keys_rule("matchLabels", "match_labels"),)


class PodTerm(ResourceModel):
    """Pods, and what counts as near them."""

    label_selector: LabelSelector | None = Field(default=None, description="Which pods; absent: none.")
    topology_key: LabelKey = Field(description="Nodes with the same value of this label are near each other.")
    namespaces: Annotated[tuple[ObjectName, ...], Field(max_length=_MAP_MAX, strict=False)] = Field(
        default=(), description="Where the pods are; the pipe's namespace if absent."
    )


class PreferredPodTerm(ResourceModel):
    """A term that is liked."""

    weight: Weight = Field(description="How much it is liked: 1 to 100.")
    pod_affinity_term: PodTerm = Field(description="What is liked.")


class PodAffinity(ResourceModel):
    """Near which pods (or, as anti-affinity, far from which) it runs."""

    required_during_scheduling_ignored_during_execution: Annotated[
        tuple[PodTerm, ...], Field(max_length=8, strict=False)
    ] = Field(default=(), description="What must hold.")
    preferred_during_scheduling_ignored_during_execution: Annotated[
        tuple[PreferredPodTerm, ...], Field(max_length=8, strict=False)
    ] = Field(default=(), description="What is liked.")


class AffinitySpec(ResourceModel):
    """Kubernetes' Affinity."""

    node_affinity: NodeAffinity | None = Field(default=None, description="Which nodes.")
    pod_affinity: PodAffinity | None = Field(default=None, description="Near which pods.")
    pod_anti_affinity: PodAffinity | None = Field(default=None, description="Far from which pods.")


class SpreadConstraint(ResourceModel):
    """How evenly pods spread over topology domains."""

    max_skew: Annotated[int, Field(ge=1, le=1000)] = Field(description="How uneven it may be.")
    topology_key: LabelKey = Field(description="Nodes with the same value of this label are one domain.")
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = Field(description="What if it cannot be.")
    label_selector: LabelSelector | None = Field(
        default=None, description="Which pods are counted; absent: the pipe's own."
    )
    min_domains: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="How many domains there must be, with DoNotSchedule."
    )
    node_affinity_policy: Literal["Honor", "Ignore"] | None = Field(
        default=None, description="Whether node affinity limits the domains; Honor if absent."
    )
    node_taints_policy: Literal["Honor", "Ignore"] | None = Field(
        default=None, description="Whether taints limit the domains; Ignore if absent."
    )

    rules = (
        Rule(
            "minDomains goes with whenUnsatisfiable DoNotSchedule",
            lambda one: one.min_domains is None or one.when_unsatisfiable == "DoNotSchedule",
            "!has(self.minDomains) || self.whenUnsatisfiable == 'DoNotSchedule'",
            "minDomains",
        ),
    )


class PullSecret(ResourceModel):
    """A Secret of type kubernetes.io/dockerconfigjson in the pipe's namespace."""

    name: ObjectName = Field(description="The Secret's name.")


class PodTemplate(ResourceModel):
    """What a member's pod gets besides what the operator gives it."""

    resources: ResourcesSpec | None = Field(
        default=None, description="What the container asks for, and what it may not exceed."
    )
    node_selector: LabelMap = Field(default_factory=dict, description="Labels that the node must have.")
    tolerations: Annotated[tuple[TolerationSpec, ...], Field(max_length=16, strict=False)] = Field(
        default=(), description="Taints that keep the pod away no longer."
    )
    affinity: AffinitySpec | None = Field(default=None, description="Which nodes, and near or far from which pods.")
    topology_spread_constraints: Annotated[tuple[SpreadConstraint, ...], Field(max_length=8, strict=False)] = Field(
        default=(), description="How evenly the pods spread; a node's preference by the plan stays."
    )
    priority_class_name: ObjectName | None = Field(default=None, description="The PriorityClass.")
    runtime_class_name: ObjectName | None = Field(
        default=None, description="The RuntimeClass: nvidia, where that is not the default runtime."
    )
    image_pull_secrets: Annotated[tuple[PullSecret, ...], Field(max_length=8, strict=False)] = Field(
        default=(), description="Secrets that the image is pulled with."
    )

    rules = (_keys_rule("nodeSelector", "node_selector"),)

    def pod_fields(self) -> dict[str, object]:
        """What stands in it, as PodSpec fields; `resources`, which is the container's, apart."""
        fields: dict[str, object] = self.model_dump(
            mode="json", by_alias=True, exclude_none=True, exclude_unset=True, exclude={"resources"}
        )
        return {name: value for name, value in fields.items() if value not in ({}, [])}
