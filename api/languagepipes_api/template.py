"""What a pipe's author may say of a member's pod: a closed list of Kubernetes' own PodSpec fields.

Names, values and meaning are those of core/v1 (https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/
pod-v1/); every list, map and string is bounded, so that the CRD's rules have a cost. This module knows nothing of nodes
or plans.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from languagepipes_api.names import API_GROUP, LABEL_MANAGED_BY
from languagepipes_api.resource_model import KeyName, MayBeMissing, ObjectName, ResourceModel, ResourceQuantity, Rule
from languagepipes_api.volumes import VOLUMES_RULES, VolumeMount, VolumeSpec

KEY_MAX_LENGTH = 317  # a DNS subdomain of 253, a slash, a name of 63
_MAP_MAX = 16
_VALUE_PATTERN = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
_KEY_PATTERN = "^[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?$"

LabelKey = Annotated[str, Field(min_length=1, max_length=KEY_MAX_LENGTH, pattern=_KEY_PATTERN)]
LabelValue = Annotated[str, Field(max_length=63, pattern=_VALUE_PATTERN)]
LabelMap = Annotated[dict[str, LabelValue], Field(max_length=_MAP_MAX)]
ResourceMap = Annotated[dict[str, ResourceQuantity], Field(max_length=_MAP_MAX)]
# Kubernetes takes 256 KiB of all annotations together.
AnnotationMap = Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=_MAP_MAX)]
Weight = Annotated[int, Field(ge=1, le=100)]

# What the API server asks of the key of a label or annotation: [PREFIX/]NAME, PREFIX a DNS subdomain.
_QUALIFIED_PATTERN = "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
_VARIABLE_PATTERN = "^[-._a-zA-Z][-._a-zA-Z0-9]*$"
# Which keys and variables are not free: the operator, Kubernetes or the node image sets them.
_LABELS_TAKEN = (LABEL_MANAGED_BY, "pod-template-hash")
_VARIABLES_TAKEN = ("CUDA_VISIBLE_DEVICES", "HF_ENDPOINT", "HOME")
_PREFIX_TAKEN = f"{API_GROUP}/"


def _keys_rule(field: str, attribute: str) -> Rule:
    """The keys of a map: a structural schema can say nothing of them."""
    form = f"[PREFIX/]NAME of at most {KEY_MAX_LENGTH} letters, digits, -, _ and ."
    return _keys_match(field, attribute, _KEY_PATTERN, form)


def _qualified_rule(field: str) -> Rule:
    """The keys of labels or annotations."""
    form = "[PREFIX/]NAME: PREFIX a DNS name, NAME at most 63 letters, digits, -, _ and ."
    return _keys_match(field, field, _QUALIFIED_PATTERN, form)


def _keys_match(field: str, attribute: str, pattern: str, form: str) -> Rule:
    return Rule(
        f"a key of {field} is {form}",
        lambda model: all(
            len(key) <= KEY_MAX_LENGTH and re.fullmatch(pattern, key, re.ASCII) for key in getattr(model, attribute)
        ),
        f"!has(self.{field}) || self.{field}.all(k, k.size() <= {KEY_MAX_LENGTH} && k.matches('{pattern}'))",
        field,
    )


def _free_keys_rule(field: str, taken: tuple[str, ...]) -> Rule:
    """Which keys of labels or annotations are the operator's."""
    also = f" || k in [{', '.join(repr(key) for key in taken)}]" if taken else ""
    listed = ", ".join((f"{_PREFIX_TAKEN}…", *taken))
    return Rule(
        f"{field} takes no key of the operator or of Kubernetes ({listed}): choose another key",
        lambda model: not any(key.startswith(_PREFIX_TAKEN) or key in taken for key in getattr(model, field)),
        f"!has(self.{field}) || !self.{field}.exists(k, k.startsWith('{_PREFIX_TAKEN}'){also})",
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


class KeyOf(ResourceModel):
    """One key of a Secret or ConfigMap in the pipe's namespace."""

    name: ObjectName = Field(description="The object's name.")
    key: KeyName = Field(description="The key in it.")
    optional: MayBeMissing = None


class PodField(ResourceModel):
    """A field of the pod itself."""

    field_path: Literal[
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.podIP",
        "status.podIPs",
    ] = Field(description="Which one.")


class VariableSource(ResourceModel):
    """Where a variable's value comes from."""

    secret_key_ref: KeyOf | None = Field(default=None, description="A Secret's key.")
    config_map_key_ref: KeyOf | None = Field(default=None, description="A ConfigMap's key.")
    field_ref: PodField | None = Field(default=None, description="A field of the pod.")

    rules = (
        Rule(
            "valueFrom has exactly one of secretKeyRef, configMapKeyRef and fieldRef",
            lambda one: [one.secret_key_ref, one.config_map_key_ref, one.field_ref].count(None) == 2,
            "[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldRef)].exists_one(x, x)",
        ),
    )


class VariableSpec(ResourceModel):
    """One environment variable."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=_VARIABLE_PATTERN)] = Field(
        description="Its name."
    )
    value: Annotated[str, Field(max_length=4096)] | None = Field(
        default=None,
        description="Its value; empty if value and valueFrom are absent. $(NAME) is an earlier variable's.",
    )
    value_from: VariableSource | None = Field(default=None, description="Where its value comes from.")

    rules = (
        Rule(
            "a variable has value or valueFrom, not both",
            lambda variable: variable.value is None or variable.value_from is None,
            "!(has(self.value) && has(self.valueFrom))",
        ),
        Rule(
            "the operator sets this variable: remove it (LANGUAGEPIPES_…, " + ", ".join(_VARIABLES_TAKEN) + ")",
            lambda variable: not variable.name.startswith("LANGUAGEPIPES_") and variable.name not in _VARIABLES_TAKEN,
            "!self.name.startsWith('LANGUAGEPIPES_') && "
            f"!(self.name in [{', '.join(repr(name) for name in _VARIABLES_TAKEN)}])",
            "name",
        ),
    )


class NameOf(ResourceModel):
    """A Secret or ConfigMap in the pipe's namespace."""

    name: ObjectName = Field(description="The object's name.")
    optional: MayBeMissing = None


class VariablesSpec(ResourceModel):
    """All keys of a Secret or ConfigMap, as environment variables."""

    prefix: Annotated[str, Field(min_length=1, max_length=64, pattern=_VARIABLE_PATTERN)] | None = Field(
        default=None, description="What stands before each key in the variable's name."
    )
    secret_ref: NameOf | None = Field(default=None, description="The Secret.")
    config_map_ref: NameOf | None = Field(default=None, description="The ConfigMap.")

    rules = (
        Rule(
            "an entry of envFrom has exactly one of secretRef and configMapRef",
            lambda one: (one.secret_ref is None) != (one.config_map_ref is None),
            "has(self.secretRef) != has(self.configMapRef)",
        ),
    )


class StoreTemplate(ResourceModel):
    """What the weights store's pod gets besides what the operator gives it."""

    resources: ResourcesSpec | None = Field(
        default=None, description="What the container asks for, and what it may not exceed."
    )
    labels: LabelMap = Field(
        default_factory=dict, description="Further labels of the pod. The operator's own are not free."
    )
    annotations: AnnotationMap = Field(
        default_factory=dict, description="Annotations of the pod. Keys of languagepipes.io/ are not free."
    )
    env: Annotated[tuple[VariableSpec, ...], Field(max_length=32, strict=False)] = Field(
        default=(), description="Further environment variables of the container. The operator's own are not free."
    )
    env_from: Annotated[tuple[VariablesSpec, ...], Field(max_length=8, strict=False)] = Field(
        default=(), description="Further ones from Secrets and ConfigMaps. The operator's and those of env win."
    )
    volumes: Annotated[tuple[VolumeSpec, ...], Field(max_length=8, strict=False)] = Field(
        default=(), description="Further volumes of the pod: files, a folder, a claim, or what a CSI driver gives."
    )
    volume_mounts: Annotated[tuple[VolumeMount, ...], Field(max_length=8, strict=False)] = Field(
        default=(), description="Where the container sees them. The operator's own files are not to be hidden."
    )
    node_selector: LabelMap = Field(default_factory=dict, description="Labels that the node must have.")
    tolerations: Annotated[tuple[TolerationSpec, ...], Field(max_length=16, strict=False)] = Field(
        default=(), description="Taints that keep the pod away no longer."
    )
    priority_class_name: ObjectName | None = Field(default=None, description="The PriorityClass.")
    runtime_class_name: ObjectName | None = Field(
        default=None, description="The RuntimeClass: nvidia, where that is not the default runtime."
    )
    scheduler_name: ObjectName | None = Field(
        default=None, description="The scheduler that finds its node; default-scheduler if absent."
    )
    service_account_name: ObjectName | None = Field(
        default=None,
        description="The ServiceAccount; default if absent. The pod gets no token of it in either case.",
    )
    image_pull_secrets: Annotated[tuple[PullSecret, ...], Field(max_length=8, strict=False)] = Field(
        default=(), description="Secrets that the image is pulled with."
    )

    rules = (
        _keys_rule("nodeSelector", "node_selector"),
        _qualified_rule("labels"),
        _free_keys_rule("labels", _LABELS_TAKEN),
        _qualified_rule("annotations"),
        _free_keys_rule("annotations", ()),
        Rule(
            "env names a variable twice: remove one",
            lambda template: len({variable.name for variable in template.env}) == len(template.env),
            "!has(self.env) || self.env.all(v, self.env.exists_one(w, w.name == v.name))",
            "env",
        ),
        Rule(
            "imagePullSecrets names a Secret twice: remove one",
            lambda template: (
                len({secret.name for secret in template.image_pull_secrets}) == len(template.image_pull_secrets)
            ),
            "!has(self.imagePullSecrets) || self.imagePullSecrets.all(s, self.imagePullSecrets.exists_one(t, t.name == "
            "s.name))",
            "imagePullSecrets",
        ),
        *VOLUMES_RULES,
    )

    def pod_fields(self) -> dict[str, object]:
        """What stands in it, as a manifest's fields; `resources`, which is the container's, apart."""
        fields: dict[str, object] = self.model_dump(
            mode="json", by_alias=True, exclude_none=True, exclude_unset=True, exclude={"resources"}
        )
        return {name: value for name, value in fields.items() if value not in ({}, [])}


class PodTemplate(StoreTemplate):
    """What a member's pod gets besides what the operator gives it."""

    affinity: AffinitySpec | None = Field(default=None, description="Which nodes, and near or far from which pods.")
    topology_spread_constraints: Annotated[tuple[SpreadConstraint, ...], Field(max_length=8, strict=False)] = Field(
        default=(), description="How evenly the pods spread; a node's preference by the plan stays."
    )
